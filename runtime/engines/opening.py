"""From a path to an engine: the suffix says which backend, and the device asked for is the one used."""

from __future__ import annotations

from pathlib import Path

from commands.idle_threads import let_idle_threads_sleep
from diffusion.errors import InputError
from runtime.engines.interface import Engine
from runtime.engines.onnx_opening import not_installed, open_onnx
from runtime.process_flags import ProcessFlags

DEVICES = ("cpu", "cuda")
PLAN_SUFFIX = ".plan"


def open_engine(
    path: Path | str,
    device: str | None = None,
    threads: int = 0,
    flags: ProcessFlags | None = None,
    allow_pickle: bool = False,
    backend: str = "auto",
    precision: str | None = None,
    compiled: bool = False,
) -> Engine:
    """Open `unet.onnx`, `unet.xml`, `unet.plan`, or a checkpoint folder with PyTorch, the reference.

    A backend's library is imported only here, once it is asked for.

    Args:
        path: the engine's file, or a checkpoint folder.
        device: "cpu" or "cuda", never silently another; None for "cuda" with a plan, which runs nowhere else, and
            "cpu" with the rest.
        threads: of the CPU; 0 for as many as this process may use.
        flags: what the file does not say of its process.
        allow_pickle: whether a checkpoint's weights may be a pickle.
        backend: for an ONNX file, one of `runtime.engines.backend_choice.BACKENDS`.
        precision: of a checkpoint folder on a GPU: "fp32" (None too), "fp16" or "bf16".
        compiled: whether torch.compile makes the kernels of a checkpoint folder on a GPU.

    Raises:
        InputError: nothing there, or not an engine.
        DeviceUnavailableError: the device, or the backend's library, is not on this machine.
        VerificationError: an engine that had not been run on this machine before differs from its reference, or an ONNX
            file from what ONNX Runtime makes of it.
    """
    path = Path(path)
    if device is None:
        device = default_device(path)
    if device not in DEVICES:
        raise InputError(f"device is {device!r}, expected one of {', '.join(DEVICES)}")
    _check_checkpoint_options(path, device, precision, compiled)
    if path.suffix == ".onnx" and not path.is_dir():
        return open_onnx(path, device, threads, flags, backend)
    if flags is not None and flags.output_name is not None:
        raise InputError(f"--output-name is for an ONNX file, but the engine is {path}; leave it out")
    if backend not in ("auto", "openvino" if path.suffix == ".xml" else "auto"):
        raise InputError(f"--backend {backend} is for an ONNX file, but the engine is {path}; leave it out")
    if path.is_dir():
        if device == "cuda":
            return _open_checkpoint_on_gpu(path, precision or "fp32", compiled, flags, allow_pickle)
        return _open_checkpoint(path, device, threads, flags, allow_pickle)
    if path.suffix == ".xml":
        if device != "cpu":
            raise InputError(f"{path}: runs on the CPU, but --device is {device}; give --device cpu")
        return _open_openvino(path, threads, flags)
    if path.suffix == PLAN_SUFFIX:
        return _open_plan(path, device, flags)
    if not path.exists():
        raise InputError(f"{path}: no such engine; make one with `python -m export.to_onnx`")
    raise InputError(f"{path}: found the suffix {path.suffix!r}, expected unet.onnx, unet.xml, unet.plan or a folder")


def default_device(path: Path) -> str:
    """The device that an engine runs on if nobody names one."""
    return "cuda" if path.suffix == PLAN_SUFFIX and not path.is_dir() else "cpu"


def _open_plan(path: Path, device: str, flags: ProcessFlags | None) -> Engine:
    from runtime.engines.tensorrt_refusals import runs_here

    if device == "cpu":
        raise InputError(
            f"{path}: runs on an NVIDIA GPU, but --device is cpu; leave --device out, or {runs_here(path)}"
        )
    from runtime.engines.tensorrt_engine import open_plan

    return open_plan(path, flags)


def _open_openvino(path: Path, threads: int, flags: ProcessFlags | None) -> Engine:
    try:
        from runtime.engines.openvino_cpu import open_openvino
    except ModuleNotFoundError as error:
        raise not_installed(path, "OpenVINO", "cpu", error) from error
    return open_openvino(path, threads, flags)


def _open_checkpoint(path: Path, device: str, threads: int, flags: ProcessFlags | None, allow_pickle: bool) -> Engine:
    let_idle_threads_sleep()
    try:
        from runtime.engines.torch_checkpoint import TorchEngine
    except ModuleNotFoundError as error:
        raise not_installed(path, "PyTorch and diffusers", "train", error) from error
    return TorchEngine(path, device=device, threads=threads, flags=flags, allow_pickle=allow_pickle)


def _open_checkpoint_on_gpu(
    path: Path, precision: str, compiled: bool, flags: ProcessFlags | None, allow_pickle: bool
) -> Engine:
    try:
        from runtime.engines.torch_device import TorchDeviceEngine
    except ModuleNotFoundError as error:
        raise not_installed(path, "PyTorch and diffusers", "train", error) from error
    return TorchDeviceEngine(path, precision, compiled, flags, allow_pickle)


def _check_checkpoint_options(path: Path, device: str, precision: str | None, compiled: bool) -> None:
    given = "--compile" if compiled else f"--precision {precision}"
    if not compiled and precision is None:
        return
    if path.exists() and not path.is_dir():
        raise InputError(
            f"{given} is for a checkpoint folder, but the engine is {path}, whose precision was chosen when it was "
            "exported; leave it out"
        )
    if device == "cpu" and (compiled or precision != "fp32"):
        raise InputError(
            f"{given} is for a checkpoint folder on a GPU, but the device is the CPU; give --device cuda, or export "
            "with `python -m export.to_openvino --bf16` for a fast engine here"
        )
