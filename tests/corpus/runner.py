"""Tries bad inputs: each in a fork of one process that has imported everything, or with --fresh in a new process.

The process that forks runs nothing itself: a library's threads do not live on in a fork.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.corpus.case import Case, nothing

MAX_SECONDS, MAX_BYTES = 2.0, 300 * 2**20
_HANG_SECONDS = float(os.environ.get("HANG", "60"))
# Beyond start-up: more is refused by the operating system, so that a bomb takes nobody else's memory.
_ADDRESS_SPACE = 6 * 2**30
# A file's name ends in a suffix of its own.
_ERROR = r"(python -m )?(train|export|runtime|benchmarks)\.[a-z_]+: "
_TRACEBACK = "Traceback (most recent call last)"
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    """What became of a case.

    Attributes:
        name: of the case.
        faults: what was not as it must be; empty if the case was refused well.
        code: exit code, or minus a signal.
        line: standard error.
        seconds: wall time.
        memory: bytes at the peak, beyond what the process had before.
    """

    name: str
    faults: tuple[str, ...]
    code: int
    line: str
    seconds: float
    memory: int


def try_case(case: Case, template: Path, scratch: Path, fresh: bool) -> Result:
    """Run one case in a copy of the template."""
    folder = scratch / "case"
    shutil.copytree(template, folder, symlinks=True)
    err = scratch / "err"
    try:
        case.make(folder)
        before = _listing(folder)
        began = time.perf_counter()
        code, peak, hung = _fresh(case, folder, err) if fresh else _forked(case, folder, err)
        seconds = time.perf_counter() - began
        text = err.read_text(encoding="utf-8", errors="replace")
        faults = list(_faults(case, code, text))
        if hung:
            faults.insert(0, f"goes on after {_HANG_SECONDS:g} s")
        if peak > MAX_BYTES:
            faults.append(f"takes {peak / 2**20:.0f} MiB")
        after = _listing(folder)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if changed:
            faults.append(f"changes {', '.join(changed)}")
        return Result(case.name, tuple(faults), code, text[-3000:], seconds, peak)
    finally:
        shutil.rmtree(folder)


def _faults(case: Case, code: int, text: str) -> Iterator[str]:
    if code not in case.codes:
        yield f"ends with {code}, expected {' or '.join(map(str, case.codes))}"
    if _TRACEBACK in text:
        yield "prints a traceback"
    lines = text.splitlines()
    errors = [line for line in lines if re.match(_ERROR, line)]
    if len(errors) != 1:
        yield f"prints {len(errors)} lines of error"
    if not lines:
        return
    if lines[-1:] != errors[-1:]:
        yield "prints no line of its own last"
    if len(lines[-1]) > 1200:
        yield f"prints a line of {len(lines[-1])} characters"
    # Of a flag alone, what is expected of it is the way out.
    if "; " not in lines[-1] and (case.make is not nothing or "expected" not in lines[-1]):
        yield "names no way out"
    # A note before the error may have said which file it was.
    lacking = case.lacking(" ".join([*(line for line in lines if line.startswith("note: ")), lines[-1]]))
    if lacking:
        yield f"does not say {lacking}"


def _listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            status = path.lstat()
            of_folder = name in folders and not path.is_symlink()
            found[str(path.relative_to(folder))] = (
                (0, 0, 0) if of_folder else (status.st_ino, status.st_mtime_ns, status.st_size)
            )
    return found


def _forked(case: Case, folder: Path, err: Path) -> tuple[int, int, bool]:
    main = _main_of(case.command)
    sys.stdout.flush()
    began = _resident()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setsid()
            _limit_memory()
            os.chdir(folder)
            out = os.open(os.devnull, os.O_WRONLY)
            log = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(log, 2)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            try:
                code = main(list(case.argv))
            except SystemExit as exit_:
                code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 1
            sys.stderr.flush()
        finally:
            os._exit(code)
    status, usage, hung = _wait(child)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024 - began, hung


def _fresh(case: Case, folder: Path, err: Path) -> tuple[int, int, bool]:
    script = f"import json, sys; from {case.command} import *"
    del script
    with err.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.corpus.fresh", case.command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(case.argv).encode("utf-8", "surrogatepass"))
        process.stdin.close()
        status, usage, hung = _wait(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * 1024, hung


def _wait(child: int) -> tuple[int, resource.struct_rusage, bool]:
    end, hung = time.monotonic() + _HANG_SECONDS, False
    descriptor = os.pidfd_open(child)
    try:
        import select

        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(1000 * (end - time.monotonic())):
            hung = True
        with contextlib.suppress(ProcessLookupError):
            # What it started ends with it; by itself where it has ended.
            os.killpg(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        return status, usage, hung
    finally:
        os.close(descriptor)


def _limit_memory() -> None:
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _ADDRESS_SPACE, mapped + _ADDRESS_SPACE))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def _main_of(command: str) -> Any:
    from tests.fuzz.command_lines import commands

    return commands()[command].main


def all_cases() -> list[Case]:
    """Every case of every table."""
    tables = [importlib.import_module(f"tests.corpus.{name}") for name in TABLES]
    found = [case for table in tables for case in table.cases()]
    names = [case.name for case in found]
    assert len(set(names)) == len(names), sorted({name for name in names if names.count(name) > 1})
    return found


TABLES = ("places", "json_files", "numbers", "archives", "networks", "pictures")
# What commands import when they are asked for it, so that a fork need not.
_IMPORTED = ("torch", "diffusers", "onnx", "onnxruntime", "openvino", "safetensors.torch", "PIL.Image", "scipy.linalg",
             "diffusers.pipelines.ddpm.pipeline_ddpm", "runtime.engines.torch_checkpoint", "export.source",
             "export.time_path", "export.onnx_check", "export.openvino_graph", "runtime.engines.openvino_cpu",
             "runtime.engines.onnx_runtime", "train.training", "train.hugging_face", "runtime.serve.app",
             "runtime.serve.server", "export.checkpoints.state_file", "accelerate", "sklearn.datasets",
             "export.inspection.counts")  # fmt: skip


def run_cases(cases: Sequence[Case], fresh: bool = False, verbose: bool = False) -> list[Result]:
    """Try them one after the other."""
    with tempfile.TemporaryDirectory(prefix="ddpm-rt-corpus-") as place:
        scratch = Path(place)
        os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
        os.environ["HOME"] = str(scratch)
        template = make_template(scratch / "template")
        if not fresh:
            for name in _IMPORTED:
                importlib.import_module(name)
        results = []
        for each in cases:
            results.append(try_case(each, template, scratch, fresh))
            if verbose and (results[-1].faults or fresh):
                last = results[-1]
                print(f"{last.name}: {', '.join(last.faults) or 'refused'}\n    {list(each.argv)}\n    {last.line[-1500:]}"
                      f"    {last.seconds:.2f} s, {last.memory / 2**20:.0f} MiB", flush=True)  # fmt: skip
        return results


def make_template(folder: Path) -> Path:
    """The folder that cases are tried in copies of, made by a process that ends."""
    kept = os.environ.get("DDPM_RT_CORPUS")
    if kept and Path(kept).is_dir():
        shutil.copytree(kept, folder, symlinks=True)
        return folder
    folder.mkdir()
    command = "import sys, pathlib; from tests.corpus.folder import make_corpus_folder as make; make(pathlib.Path(sys.argv[1]))"
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    made = subprocess.run([sys.executable, "-c", command, str(folder)], env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    if kept:
        shutil.copytree(folder, kept, symlinks=True)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="a new process for each case")
    parser.add_argument("--only", default="", help="a pattern that names must hold")
    parser.add_argument("--every", type=int, default=1, help="of those every so many")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    cases = [case for case in all_cases() if re.search(args.only, case.name)][:: args.every]
    results = run_cases(cases, args.fresh, verbose=True)
    bad = [result for result in results if result.faults]
    print(f"{len(results)} bad inputs, {len(bad)} not refused as they must be")
    if args.out:
        args.out.write_text(json.dumps({"results": [asdict(result) for result in results], "machine": platform.node()}))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
