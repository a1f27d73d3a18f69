"""From a path to an engine: the registry of backends, and how one of them opens a file or a folder.

A new backend is a file with its engine and one entry in `BACKENDS`: which files it opens, on which devices, and what it
needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusion.errors import InputError
from runtime.engines.interface import Engine
from runtime.engines.onnx_opening import not_installed
from runtime.process_flags import ProcessFlags

DEVICES = ("cpu", "cuda")
_WHERE = {"cpu": "on the CPU", "cuda": "on an NVIDIA GPU"}

FOLDER = "/"
"""In place of a suffix: the backend opens folders."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is to be opened.

    Attributes:
        device: "cpu" or "cuda", never silently another; None for the first that the backend runs on.
        threads: of the CPU; 0 for as many as this process may use.
        flags: what the file does not say of its process.
        allow_pickle: whether a checkpoint's weights may be a pickle.
        backend: for an ONNX file, one of `runtime.engines.onnx_opening.ONNX_BACKENDS`.
        precision: of a checkpoint folder on a GPU: "fp32" (None too), "fp16" or "bf16".
        compiled: whether torch.compile makes the kernels of a checkpoint folder on a GPU.
    """

    device: str | None = None
    threads: int = 0
    flags: ProcessFlags | None = None
    allow_pickle: bool = False
    backend: str = "auto"
    precision: str | None = None
    compiled: bool = False


@dataclass(frozen=True)
class Backend:
    """One kind of engine.

    Attributes:
        name: as `--backend` has it.
        suffix: of its files, or `FOLDER`.
        devices: that it runs on, the default first.
        open: makes an engine of a path; the device is chosen, and the backend's library is imported only here.
        needs: the library, for the message where it is not installed.
        extra: of ddpm-rt, that brings the library.
        takes: the options that are for this kind of engine alone.
        elsewhere: for a path, the end of the message where another device was asked for.
    """

    name: str
    suffix: str
    devices: tuple[str, ...]
    open: Callable[[Path, EngineOptions], Engine]
    needs: str
    extra: str
    takes: frozenset[str] = frozenset()
    elsewhere: Callable[[Path], str] | None = None


def _open_onnx(path: Path, options: EngineOptions) -> Engine:
    from runtime.engines.onnx_opening import open_onnx

    return open_onnx(path, options.device or "cpu", options.threads, options.flags, options.backend)


def _open_openvino(path: Path, options: EngineOptions) -> Engine:
    from runtime.engines.openvino_cpu import open_openvino

    return open_openvino(path, options.threads, options.flags)


def _open_plan(path: Path, options: EngineOptions) -> Engine:
    from runtime.engines.tensorrt_engine import open_plan

    return open_plan(path, options.flags)


def _plan_elsewhere(path: Path) -> str:
    from runtime.engines.tensorrt_refusals import runs_here

    return f"leave `device` out, or {runs_here(path)}"


def _open_checkpoint(path: Path, options: EngineOptions) -> Engine:
    if options.device == "cuda":
        from runtime.engines.torch_device import open_checkpoint_on_gpu

        precision = options.precision or "fp32"
        return open_checkpoint_on_gpu(path, precision, options.compiled, options.flags, options.allow_pickle)
    from commands.system import let_idle_threads_sleep

    let_idle_threads_sleep()
    from runtime.engines.torch_checkpoint import TorchEngine

    return TorchEngine(
        path, device="cpu", threads=options.threads, flags=options.flags, allow_pickle=options.allow_pickle
    )


BACKENDS = [
    Backend(
        "onnx",
        ".onnx",
        ("cpu", "cuda"),
        _open_onnx,
        "ONNX Runtime or OpenVINO",
        "cpu",
        takes=frozenset({"backend", "output_name"}),
    ),
    Backend("openvino", ".xml", ("cpu",), _open_openvino, "OpenVINO", "cpu"),
    Backend("tensorrt", ".plan", ("cuda",), _open_plan, "TensorRT", "gpu", elsewhere=_plan_elsewhere),
    Backend(
        "pytorch",
        FOLDER,
        ("cpu", "cuda"),
        _open_checkpoint,
        "PyTorch and diffusers",
        "train",
        takes=frozenset({"precision", "compiled"}),
    ),
]


def find_backend(path: Path) -> Backend | None:
    """The one that opens a path; None where none does. Whether the path exists is not asked of a file."""
    kind = FOLDER if path.is_dir() else path.suffix
    return next((backend for backend in BACKENDS if backend.suffix == kind), None)


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
        remedy = f"give `device={only}`" if backend.elsewhere is None else backend.elsewhere(path)
        raise InputError(f"{path}: runs {_WHERE[only]}, but `device` is {options.device}; {remedy}")
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
                f"{given} is for a checkpoint folder on a GPU, but the device is the CPU; give `device=cuda`, or "
                "export with `python -m export.to_openvino --bf16` for a fast engine here"
            )
    if options.flags is not None and options.flags.output_name is not None and "output_name" not in takes:
        raise InputError(f"`output_name` is for an ONNX file, but the engine is {path}; leave it out")
    what = f"the engine is {path}, a folder" if path.is_dir() else f"the engine is {path}"
    own_name = "auto" if backend is None or backend.suffix == FOLDER else backend.name
    if options.backend not in ("auto", own_name) and "backend" not in takes:
        raise InputError(f"`backend={options.backend}` is for an ONNX file, but {what}; leave it out")
