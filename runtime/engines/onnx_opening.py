"""From an ONNX file to the engine that runs it: chosen by facts, and compared where it is not ONNX Runtime's CPU."""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from commands.errors import DeviceUnavailableError, VerificationError
from commands.program import say
from diffusion.errors import InputError
from runtime.engines.interface import Engine
from runtime.engines.onnx_file import OnnxFile, read_onnx
from runtime.process_flags import ProcessFlags

if TYPE_CHECKING:
    from runtime.engines.onnx_runtime import OnnxRuntimeEngine

ONNX_BACKENDS = ("auto", "onnxruntime", "openvino")
_TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
# OpenVINO generates its convolutions for these; without them it is not known to be the faster of the two.
_NEEDED_FLAGS = frozenset({"avx2", "fma"})


@dataclass(frozen=True)
class BackendChoice:
    """A library and why it was chosen; the reason is empty where the user named it."""

    backend: str
    reason: str = ""


def choose_backend(backend: str, device: str, precision: str = "fp32") -> BackendChoice:
    """The library for an ONNX file, in the file's precision whichever it is.

    On a CPU with AVX-512, OpenVINO was 1.0 to 1.5 times as fast as ONNX Runtime, at batches of 1 and of 8 and with an
    8×8 and a 32×32 network (docs/openvino-profile.md), so the batch does not decide. fp16 and bf16 files are for ONNX
    Runtime: OpenVINO runs fp16 ones in float32, and bf16 ones in bf16 even where it was told, and says, float32.

    Args:
        backend: one of `ONNX_BACKENDS`; anything but "auto" is obeyed.
        device: "cpu" or "cuda"; OpenVINO runs on the CPU alone.
        precision: of the file, see `runtime.engines.onnx_precision`.

    Raises:
        InputError: an unknown backend, or OpenVINO for a GPU.
        DeviceUnavailableError: the library is not installed.
    """
    if backend not in ONNX_BACKENDS:
        raise InputError(f"backend is {backend!r}, expected one of {', '.join(ONNX_BACKENDS)}")
    if backend == "openvino" and device != "cpu":
        raise InputError(f"`backend=openvino` runs on the CPU, but `device` is {device}; give `device=cpu`")
    if backend != "auto":
        choice = BackendChoice(backend)
    elif device != "cpu":
        choice = BackendChoice("onnxruntime", "it alone runs ONNX files on a GPU")
    elif precision != "fp32":
        choice = BackendChoice("onnxruntime", f"OpenVINO does not run {precision} files as they are")
    else:
        have = [name for name in _TITLES if _installed(name)]
        if not have:
            raise _missing("ONNX Runtime or OpenVINO", "onnxruntime")
        if len(have) == 1:
            other = next(title for name, title in _TITLES.items() if name not in have)
            choice = BackendChoice(have[0], f"{other} is not installed")
        elif platform.machine() in ("x86_64", "AMD64") and _cpu_flags() >= _NEEDED_FLAGS:
            choice = BackendChoice("openvino", "this CPU has AVX2")
        else:
            choice = BackendChoice("onnxruntime", "this CPU has no AVX2")
    if not _installed(choice.backend):
        raise _missing(_TITLES[choice.backend], choice.backend)
    return choice


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def _missing(title: str, module: str) -> DeviceUnavailableError:
    return DeviceUnavailableError(
        f'an ONNX file needs {title}, and the module {module!r} is not installed; pip install "ddpm-rt[cpu]"'
    )


def open_onnx(path: Path, device: str, threads: int, flags: ProcessFlags | None, backend: str) -> Engine:
    """Open an ONNX file, as `runtime.engines.opening.open_engine`.

    What OpenVINO, or a GPU, makes of a file is compared once with what ONNX Runtime's CPU provider makes of it. Past
    the tolerance `auto` goes on with ONNX Runtime and says why; a backend or a device that was asked for by name is
    refused.

    Raises:
        InputError, DeviceUnavailableError: as `open_engine`; or ONNX Runtime, to compare with, is not installed.
        VerificationError: the backend differs from ONNX Runtime, or it is not known which of them is right.
    """
    file = read_onnx(path)
    choice = choose_backend(backend, device, file.precision)
    if choice.backend == "openvino":
        return _open_with_openvino(file, threads, flags, backend, choice.reason)
    if device == "cuda":
        return _open_on_gpu(file, flags)
    engine = _open_onnx_runtime(file, threads, flags)
    _check_batches(engine, path, flags)
    engine.chosen_because = choice.reason
    return engine


def _open_with_openvino(file: OnnxFile, threads: int, flags: ProcessFlags | None, backend: str, reason: str) -> Engine:
    path = file.path
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
        references.append(_open_onnx_runtime(file, threads, flags))
        return references[0]

    try:
        engine = open_openvino(path, threads, flags, file)
        found = find_agreement(engine, path, place_here(), open_reference, output_name=_output_name(flags))
    except InputError as error:
        if backend == "openvino" or references:
            raise
        # What is wrong with the file itself ONNX Runtime says again.
        instead = open_reference()
        return _instead(instead, path, flags, f"OpenVINO does not run it ({error})")
    if found.passed:
        if engine.shares_timestep:  # the comparison never called different samples together
            _check_batches(engine, path, flags)
        engine.chosen_because = reason
        return engine
    if backend == "openvino":
        raise VerificationError(f"{path}: {found.summary}; give `backend=onnxruntime`\n{found.table}")
    if not found.onnx_runtime_is_sure:
        raise VerificationError(
            f"{path}: {found.summary}; correct the network, or take ONNX Runtime's word with `backend=onnxruntime`"
            f"\n{found.table}"
        )
    del engine
    return _instead(references[0] if references else open_reference(), path, flags, found.summary)


def _check_batches(engine: Engine, path: Path, flags: ProcessFlags | None) -> None:
    from runtime.engines.batch_independence import ensure_independent

    ensure_independent(engine, path, _output_name(flags))


def _output_name(flags: ProcessFlags | None) -> str | None:
    return None if flags is None else flags.output_name


def _instead(engine: OnnxRuntimeEngine, path: Path, flags: ProcessFlags | None, why: str) -> Engine:
    _check_batches(engine, path, flags)
    say(f"{path}: {why}: ONNX Runtime runs it")
    engine.chosen_because = "OpenVINO does not run it or is off"
    return engine


def _open_on_gpu(file: OnnxFile, flags: ProcessFlags | None) -> Engine:
    path = file.path
    try:
        from runtime.engines.agreement import ON_GPU, find_agreement
        from runtime.engines.onnx_device import OnnxDeviceEngine
    except ModuleNotFoundError as error:
        raise not_installed(path, "ONNX Runtime", "gpu", error) from error
    engine = OnnxDeviceEngine(path, flags, file=file)
    try:
        found = find_agreement(
            engine,
            path,
            engine.place(),
            lambda: _open_onnx_runtime(file, 0, flags),
            ON_GPU[engine.precision],
            _output_name(flags),
        )
    except DeviceUnavailableError as error:  # bf16, of which only a GPU has convolutions
        say(f"{path}: was compared with nothing ({error})")
        _check_batches(engine, path, flags)
        return engine
    if not found.passed:
        raise VerificationError(f"{path}: {found.summary}; give `device=cpu`\n{found.table}")
    engine.chosen_because = "it alone runs ONNX files on a GPU"
    return engine


def _open_onnx_runtime(file: OnnxFile, threads: int, flags: ProcessFlags | None) -> OnnxRuntimeEngine:
    try:
        from runtime.engines.onnx_runtime import OnnxRuntimeEngine
    except ModuleNotFoundError as error:
        raise not_installed(file.path, "ONNX Runtime", "cpu", error) from error
    return OnnxRuntimeEngine(file.path, "cpu", threads, flags, file)


def not_installed(path: Path, library: str, extra: str, error: ModuleNotFoundError) -> DeviceUnavailableError:
    """For a backend whose library is not there, and the extra that brings it."""
    return DeviceUnavailableError(
        f'{path}: needs {library}, and the module {error.name!r} is not installed; pip install "ddpm-rt[{extra}]"'
    )
