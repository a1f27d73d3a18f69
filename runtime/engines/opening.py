"""From a path to an engine: the suffix says which backend, and the device asked for is the one used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusion.errors import InputError
from runtime.engines.interface import Engine
from runtime.engines.onnx_opening import not_installed
from runtime.engines.registry import FOLDER, Backend, EngineOptions, find_backend

DEVICES = ("cpu", "cuda")
_WHERE = {"cpu": "on the CPU", "cuda": "on an NVIDIA GPU"}


def open_engine(path: Path | str, options: EngineOptions | None = None, **changes: Any) -> Engine:
    """Open `unet.onnx`, `unet.xml`, `unet.plan`, or a checkpoint folder with PyTorch, the reference.

    A backend's library is imported only here, once it is asked for.

    Args:
        path: the engine's file, or a checkpoint folder.
        options: how to open it.
        changes: fields of `EngineOptions` by name, as in `open_engine("unet.onnx", threads=2)`.

    Raises:
        InputError: nothing there, or not an engine.
        DeviceUnavailableError: the device, or the backend's library, is not on this machine.
        VerificationError: an engine that had not been run on this machine before differs from its reference, or an ONNX
            file from what ONNX Runtime makes of it.
    """
    path = Path(path)
    options = replace(options or EngineOptions(), **changes)
    backend = find_backend(path)
    if options.device is None:
        options = replace(options, device="cpu" if backend is None else backend.devices[0])
    if options.device not in DEVICES:
        raise InputError(f"device is {options.device!r}, expected one of {', '.join(DEVICES)}")
    _check_options(path, backend, options)
    if backend is None:
        if not path.exists():
            raise InputError(f"{path}: no such engine; make one with `python -m export.to_onnx`")
        raise InputError(
            f"{path}: found the suffix {path.suffix!r}, expected unet.onnx, unet.xml, unet.plan or a folder"
        )
    if options.device not in backend.devices:
        only = backend.devices[0]
        remedy = f"give --device {only}" if backend.elsewhere is None else backend.elsewhere(path)
        raise InputError(f"{path}: runs {_WHERE[only]}, but --device is {options.device}; {remedy}")
    try:
        return backend.open(path, options)
    except ModuleNotFoundError as error:
        raise not_installed(path, backend.needs, backend.extra, error) from error


def _check_options(path: Path, backend: Backend | None, options: EngineOptions) -> None:
    """Raises InputError for an option that is for another kind of engine."""
    takes = frozenset() if backend is None else backend.takes
    if options.compiled or options.precision is not None:
        given = "--compile" if options.compiled else f"--precision {options.precision}"
        if "precision" not in takes and path.exists():
            raise InputError(
                f"{given} is for a checkpoint folder, but the engine is {path}, whose precision was chosen when it was "
                "exported; leave it out"
            )
        if options.device == "cpu" and (options.compiled or options.precision != "fp32"):
            raise InputError(
                f"{given} is for a checkpoint folder on a GPU, but the device is the CPU; give --device cuda, or "
                "export with `python -m export.to_openvino --bf16` for a fast engine here"
            )
    if options.flags is not None and options.flags.output_name is not None and "output_name" not in takes:
        raise InputError(f"--output-name is for an ONNX file, but the engine is {path}; leave it out")
    own_name = "auto" if backend is None or backend.suffix == FOLDER else backend.name
    if options.backend not in ("auto", own_name) and "backend" not in takes:
        raise InputError(f"--backend {options.backend} is for an ONNX file, but the engine is {path}; leave it out")
