"""The backends: which files each one opens, on which devices, and what it needs. A new one is one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime.engines.interface import Engine
from runtime.process_flags import ProcessFlags

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
        backend: for an ONNX file, one of `runtime.engines.backend_choice.BACKENDS`.
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

    return f"leave --device out, or {runs_here(path)}"


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
