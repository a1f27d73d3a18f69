"""`python -m export.to_triton`: an engine to a model repository of Triton Inference Server.

Two models: one draws images with the slots of the service, in Triton's Python backend; the other is the bare network,
an ONNX file or a plan, for whoever has a loop of their own.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commands.program import Report, make_parser, run_program, say
from commands.whole_files import check_replaceable, whole_folder
from diffusion.errors import InputError
from export.triton_config import network_config, slots_config, tensors_of
from runtime.device.interface import DeviceEngine
from runtime.engines.opening import DEVICES, EngineOptions, open_engine
from runtime.formats.sidecar import engine_files
from runtime.serve.flags import add_limit_flags, check_slots_and_threads, limits_of
from runtime.serve.slots import Slots
from runtime.serve.worker import Limits

DEFAULT_OUT = Path("triton_models")
# Suffix → the backend of Triton that runs such files, and what it calls them.
_BACKENDS = {".onnx": ("onnxruntime", "model.onnx"), ".plan": ("tensorrt", "model.plan")}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_MODEL = '''"""Draws images: the slots of ddpm-rt, which must be installed where Triton's Python is."""

from runtime.serve.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class TritonRequest:
    """What is to be written.

    Attributes:
        engine: an ONNX file, an OpenVINO engine or a plan.
        out: the repository, a folder.
        name: of the model that draws images; the network is called `NAME_network`.
        slots: samples of a network call.
        device: None for the engine's own.
        threads: of the CPU; 0 for as many as Triton's process may use.
        limits: on requests.
    """

    engine: Path
    out: Path = DEFAULT_OUT
    name: str = "ddpm"
    slots: int = 8
    device: str | None = None
    threads: int = 0
    limits: Limits = field(default_factory=Limits)


def export_triton(request: TritonRequest) -> Report:
    """Write a model repository, whole or not at all. The engine is opened from the copy in it, as Triton will.

    Returns:
        `summary`, `repository`, and the names of the `models`.

    Raises:
        InputError: an engine that cannot be opened or has no place in a repository, or a folder that cannot be written.
        VerificationError, DeviceUnavailableError: as `open_engine`.
    """
    engine, out, name = request.engine, request.out, request.name
    if not _NAME.fullmatch(name):
        raise InputError(f"name is {name[:99]!r}, expected letters, digits, '_', '-' and '.'")
    if engine.is_dir() or engine.suffix not in (*_BACKENDS, ".xml"):
        raise InputError(
            f"{engine}: expected an ONNX file, an .xml of OpenVINO or a plan; export a checkpoint first, with "
            "`python -m export.to_onnx`"
        )
    files = _files(engine)
    if not files[engine.name].exists():
        raise InputError(f"{engine}: no such file; make one with `python -m export.to_onnx`")
    _check_out(out, name)
    models = [name]
    with whole_folder(out) as folder:
        version = folder / name / "1"
        version.mkdir(parents=True)
        copy = version / engine.name
        for file_name, file in files.items():
            if file.exists():  # what is missing is said by who opens it
                shutil.copyfile(file, version / file_name)
        say(f"opening {engine.name} as Triton will")
        opened = open_engine(copy, EngineOptions(request.device, request.threads))
        Slots(opened, request.slots, request.threads).close()
        limits, on_gpu = request.limits, request.device == "cuda" or isinstance(opened, DeviceEngine)
        parameters = {
            "engine": engine.name,
            "slots": str(request.slots),
            "device": "cuda" if on_gpu else "cpu",
            "threads": str(request.threads),
            "max_images": str(limits.images),
            "max_waiting": str(limits.waiting),
            "deadline_s": repr(limits.deadline_s),
        }
        (version / "model.py").write_text(_MODEL, encoding="utf-8")
        config = slots_config(name, opened.process.sample, parameters, on_gpu)
        (folder / name / "config.pbtxt").write_text(config, encoding="utf-8")
        if engine.suffix in _BACKENDS:
            backend, file_name = _BACKENDS[engine.suffix]
            network = f"{name}_network"
            models.append(network)
            (folder / network / "1").mkdir(parents=True)
            # Of the copy that was opened: the file itself may be another one by now.
            shutil.copyfile(copy, folder / network / "1" / file_name)
            config = network_config(network, backend, file_name, tensors_of(copy), opened.batch_range())
            (folder / network / "config.pbtxt").write_text(config, encoding="utf-8")
        _check_out(out, name)  # once more: opening an engine takes a while
    without = "" if len(models) > 1 else "; without the bare network, which Triton takes as an ONNX file or a plan"
    summary = (
        f"{out}: {' and '.join(models)}{without}\n"
        f'next: tritonserver --model-repository={out}, where `pip install "ddpm-rt[cpu,serve]"` was done'
    )
    return {"summary": summary, "repository": str(out), "models": models}


def _files(engine: Path) -> dict[str, Path]:
    """Where the file is and what belongs to it, by name."""
    if engine.suffix == ".onnx":
        return {engine.name: engine}
    files = engine_files(engine)
    return {name: files.current(name) for name in files.entries}


def _check_out(out: Path, name: str) -> None:
    """Raises InputError for a folder that holds anything but what this command writes."""
    check_replaceable(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: is a file, expected the name of a folder; choose another name")
    models = (name, f"{name}_network")
    ours = {each for model in models for each in (model, f"{model}/config.pbtxt", f"{model}/1")}
    found = sorted(str(each.relative_to(out)) for each in out.rglob("*"))
    below = tuple(f"{model}/1/" for model in models)
    others = [each for each in found if each not in ours and not each.startswith(below)]
    model = out / name / "1" / "model.py"
    is_ours = model.is_file() and model.read_text(encoding="utf-8", errors="replace") == _MODEL
    if found and not is_ours and all(each.partition("/")[0] in models for each in found):
        raise InputError(f"{out}: holds a model {name!r} that is not ours; choose another folder or another name")
    if others:
        raise InputError(
            f"{out}: holds {others[0]!r}, which would be lost; choose another folder, and move the models into this one"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(
        "export.to_triton",
        "Write a model repository of Triton Inference Server: images, step by step, and the bare network.",
        "A request is the JSON of POST /v1/images, see docs/service.md; responses are decoupled.",
    )
    parser.add_argument("--engine", type=Path, default=Path("unet.onnx"), help="unet.onnx (default), an .xml or a plan")
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="FOLDER", help=f"the repository (default: {DEFAULT_OUT})"
    )
    parser.add_argument("--name", default="ddpm", help="of the model (default: ddpm)")
    parser.add_argument("--slots", type=int, default=8, metavar="N", help="samples of every network call (default: 8)")
    parser.add_argument("--device", choices=DEVICES, help="default: cuda for a plan, cpu for the rest")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all that Triton may use)")
    add_limit_flags(parser)

    def run(args: argparse.Namespace) -> Report:
        check_slots_and_threads(args)
        request = TritonRequest(
            args.engine, args.out, args.name, args.slots, args.device, args.threads, limits_of(args)
        )
        return export_triton(request)

    return run_program(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
