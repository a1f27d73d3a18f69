"""`make fuzz`: atheris feeds every reader of `tests.reader_fuzz.readers`, guided by the branches that inputs reach.

    python -m tests.reader_fuzz                       every reader, FUZZ_SECONDS each (600)
    python -m tests.reader_fuzz picture -runs=1000    one, with libFuzzer's own flags

atheris is found in build/fuzz/atheris, where `make fuzz` puts it. What is found lies in build/fuzz/findings: it becomes
a seed once it is corrected, and tests/reader_fuzz/test_readers.py tries it from then on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEEDS = Path(__file__).with_name("seeds")
WORK = ROOT / "build" / "fuzz"
# Of one input.
_SECONDS, _MEGABYTES, _MAX_BYTES = 20, 4096, 16384


def main() -> int:
    """The command line; returns 1 where a reader has a bug."""
    if len(sys.argv) > 1:
        return _fuzz(sys.argv[1], sys.argv[2:])
    seconds = int(os.environ.get("FUZZ_SECONDS", "600"))
    failed = []
    for name in sorted(each.name for each in SEEDS.iterdir()):
        corpus, findings = WORK / "corpus" / name, WORK / "findings"
        corpus.mkdir(parents=True, exist_ok=True)
        findings.mkdir(exist_ok=True)
        command = [
            sys.executable, "-m", "tests.reader_fuzz", name, corpus, SEEDS / name, f"-max_total_time={seconds}",
            f"-timeout={_SECONDS}", f"-rss_limit_mb={_MEGABYTES}", f"-max_len={_MAX_BYTES}", "-print_final_stats=1",
            f"-artifact_prefix={findings}/{name}-",
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": f"{WORK / 'atheris'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        tried = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        print(f"{name}: {tried[-1].split()[-1] if tried else 'no'} inputs, exit code {done.returncode}", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stdout[-2000:] + done.stderr[-4000:], flush=True)
    print(f"bugs in {', '.join(failed)}: see {WORK / 'findings'}" if failed else "no bug was found")
    return 1 if failed else 0


def _fuzz(name: str, arguments: list[str]) -> int:
    import atheris

    with atheris.instrument_imports(include=["runtime", "diffusion", "train", "commands", "json", "zipfile"]):
        from tests.reader_fuzz.readers import try_reader
    with tempfile.TemporaryDirectory() as place:
        for seed in (SEEDS / name).iterdir():  # what is imported by the first of them does not count as its time
            try_reader(name, seed.read_bytes(), Path(place))

        def one_input(content: bytes) -> None:
            try_reader(name, content, Path(place))

        atheris.Setup([sys.argv[0], *arguments], one_input)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
