"""From an ONNX file to the engine that runs it: chosen by facts, and compared where it is not ONNX Runtime's CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from commands.errors import DeviceUnavailableError, VerificationError
from commands.program import say
from diffusion.errors import InputError
from runtime.engines.backend_choice import choose_backend
from runtime.engines.interface import Engine
from runtime.engines.onnx_precision import onnx_precision
from runtime.engines.samples_apart import ensure_samples_apart
from runtime.process_flags import ProcessFlags

if TYPE_CHECKING:
    from runtime.engines.onnx_runtime import OnnxRuntimeEngine


def open_onnx(path: Path, device: str, threads: int, flags: ProcessFlags | None, backend: str) -> Engine:
    """Open an ONNX file, as `runtime.engines.opening.open_engine`.

    What OpenVINO, or a GPU, makes of a file is compared once with what ONNX Runtime's CPU provider makes of it. Past
    the tolerance `auto` goes on with ONNX Runtime and says why; a backend or a device that was asked for by name is
    refused.

    Raises:
        InputError, DeviceUnavailableError: as `open_engine`; or ONNX Runtime, to compare with, is not installed.
        VerificationError: the backend differs from ONNX Runtime, or nobody knows which of them is right.
    """
    choice = choose_backend(backend, device, onnx_precision(path))
    if choice.backend == "openvino":
        return _open_with_openvino(path, threads, flags, backend, choice.reason)
    if device == "cuda":
        return _open_on_gpu(path, flags)
    engine = _open_onnx_runtime(path, threads, flags)
    ensure_samples_apart(engine, path)
    engine.chosen_because = choice.reason
    return engine


def _open_with_openvino(path: Path, threads: int, flags: ProcessFlags | None, backend: str, reason: str) -> Engine:
    try:
        from runtime.engines.openvino_cpu import open_openvino, place_here
    except ModuleNotFoundError as error:
        raise not_installed(path, "OpenVINO", "cpu", error) from error
    try:
        from runtime.engines.agreement import find_agreement
    except ModuleNotFoundError as error:
        raise DeviceUnavailableError(
            f"{path}: OpenVINO runs no ONNX file that was not compared with ONNX Runtime, and the module "
            f'{error.name!r} is not installed; pip install "ddpm-rt[cpu]", or make an engine from the checkpoint with '
            "`python -m export.to_openvino`"
        ) from error

    references: list[OnnxRuntimeEngine] = []

    def open_reference() -> OnnxRuntimeEngine:
        references.append(_open_onnx_runtime(path, threads, flags))
        return references[0]

    try:
        engine = open_openvino(path, threads, flags)
        found = find_agreement(engine, path, place_here(), open_reference)
    except InputError as error:
        if backend == "openvino" or references:
            raise
        # What is wrong with the file itself ONNX Runtime says again.
        instead = open_reference()
        return _instead(instead, path, f"OpenVINO does not run it ({error})")
    if found.passed:
        engine.chosen_because = reason
        return engine
    if backend == "openvino":
        raise VerificationError(f"{path}: {found.summary}; give --backend onnxruntime\n{found.table}")
    if not found.onnx_runtime_is_sure:
        raise VerificationError(
            f"{path}: {found.summary}; correct the network, or take ONNX Runtime's word with --backend onnxruntime"
            f"\n{found.table}"
        )
    del engine
    return _instead(references[0] if references else open_reference(), path, found.summary)


def _instead(engine: OnnxRuntimeEngine, path: Path, why: str) -> Engine:
    say(f"{path}: {why}: ONNX Runtime runs it")
    ensure_samples_apart(engine, path)
    engine.chosen_because = "OpenVINO does not run it or is off"
    return engine


def _open_on_gpu(path: Path, flags: ProcessFlags | None) -> Engine:
    try:
        from runtime.engines.agreement import ON_GPU, find_agreement
        from runtime.engines.onnx_device import OnnxDeviceEngine
    except ModuleNotFoundError as error:
        raise not_installed(path, "ONNX Runtime", "gpu", error) from error
    engine = OnnxDeviceEngine(path, flags)
    try:
        found = find_agreement(
            engine, path, engine.place(), lambda: _open_onnx_runtime(path, 0, flags), ON_GPU[engine.precision]
        )
    except DeviceUnavailableError as error:  # bf16, of which only a GPU has convolutions
        say(f"{path}: was compared with nothing ({error})")
        return engine
    if not found.passed:
        raise VerificationError(f"{path}: {found.summary}; give --device cpu\n{found.table}")
    engine.chosen_because = "it alone runs ONNX files on a GPU"
    return engine


def _open_onnx_runtime(path: Path, threads: int, flags: ProcessFlags | None) -> OnnxRuntimeEngine:
    try:
        from runtime.engines.onnx_runtime import OnnxRuntimeEngine
    except ModuleNotFoundError as error:
        raise not_installed(path, "ONNX Runtime", "cpu", error) from error
    return OnnxRuntimeEngine(path, "cpu", threads, flags)


def not_installed(path: Path, library: str, extra: str, error: ModuleNotFoundError) -> DeviceUnavailableError:
    """For a backend whose library is not there, and the extra that brings it."""
    return DeviceUnavailableError(
        f'{path}: needs {library}, and the module {error.name!r} is not installed; pip install "ddpm-rt[{extra}]"'
    )
