"""From a path to an engine: the suffix says which backend, and the device asked for is the one used."""

from __future__ import annotations

from pathlib import Path

from commands.errors import DeviceUnavailableError
from commands.idle_threads import let_idle_threads_sleep
from diffusion.errors import InputError
from runtime.engines.backend_choice import choose_backend
from runtime.engines.interface import Engine
from runtime.process_flags import ProcessFlags

DEVICES = ("cpu", "cuda")


def open_engine(
    path: Path | str,
    device: str = "cpu",
    threads: int = 0,
    flags: ProcessFlags | None = None,
    allow_pickle: bool = False,
    backend: str = "auto",
) -> Engine:
    """Open `unet.onnx`, `unet.xml`, or a checkpoint folder with PyTorch, the reference.

    A backend's library is imported only here, once it is asked for.

    Args:
        path: the engine's file, or a checkpoint folder.
        device: "cpu" or "cuda"; never silently another.
        threads: of the CPU; 0 for as many as this process may use.
        flags: what the file does not say of its process.
        allow_pickle: whether a checkpoint's weights may be a pickle.
        backend: for an ONNX file, one of `runtime.engines.backend_choice.BACKENDS`.

    Raises:
        InputError: nothing there, or not an engine.
        DeviceUnavailableError: the device, or the backend's library, is not on this machine.
    """
    path = Path(path)
    if device not in DEVICES:
        raise InputError(f"device is {device!r}, expected one of {', '.join(DEVICES)}")
    if path.suffix == ".onnx" and not path.is_dir():
        if choose_backend(backend, device).backend == "openvino":
            return _open_openvino(path, threads, flags)
        try:
            from runtime.engines.onnx_runtime import OnnxRuntimeEngine
        except ModuleNotFoundError as error:
            raise _not_installed(path, "ONNX Runtime", "cpu", error) from error
        return OnnxRuntimeEngine(path, device, threads, flags)
    if backend not in ("auto", "openvino" if path.suffix == ".xml" else "auto"):
        raise InputError(f"--backend {backend} is for an ONNX file, but the engine is {path}; leave it out")
    if path.is_dir():
        return _open_checkpoint(path, device, threads, flags, allow_pickle)
    if path.suffix == ".xml":
        if device != "cpu":
            raise InputError(f"{path}: runs on the CPU, but --device is {device}; give --device cpu")
        return _open_openvino(path, threads, flags)
    if not path.exists():
        raise InputError(f"{path}: no such engine; make one with `python -m export.to_onnx`")
    raise InputError(f"{path}: found the suffix {path.suffix!r}, expected unet.onnx, unet.xml or a checkpoint folder")


def _open_openvino(path: Path, threads: int, flags: ProcessFlags | None) -> Engine:
    try:
        from runtime.engines.openvino_cpu import OpenVinoEngine
    except ModuleNotFoundError as error:
        raise _not_installed(path, "OpenVINO", "cpu", error) from error
    return OpenVinoEngine(path, threads, flags)


def _open_checkpoint(path: Path, device: str, threads: int, flags: ProcessFlags | None, allow_pickle: bool) -> Engine:
    let_idle_threads_sleep()
    try:
        from runtime.engines.torch_checkpoint import TorchEngine
    except ModuleNotFoundError as error:
        raise _not_installed(path, "PyTorch and diffusers", "train", error) from error
    return TorchEngine(path, device=device, threads=threads, flags=flags, allow_pickle=allow_pickle)


def _not_installed(path: Path, library: str, extra: str, error: ModuleNotFoundError) -> DeviceUnavailableError:
    return DeviceUnavailableError(
        f'{path}: needs {library}, and the module {error.name!r} is not installed; pip install "ddpm-rt[{extra}]"'
    )
