"""`--backend auto`: which library runs an ONNX file, decided from facts that are read, never by trying."""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass
from pathlib import Path

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError

BACKENDS = ("auto", "onnxruntime", "openvino")
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
        backend: one of `BACKENDS`; anything but "auto" is obeyed.
        device: "cpu" or "cuda"; OpenVINO runs on the CPU alone.
        precision: of the file, see `runtime.engines.onnx_precision`.

    Raises:
        InputError: an unknown backend, or OpenVINO for a GPU.
        DeviceUnavailableError: the library is not installed.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    if backend == "openvino" and device != "cpu":
        raise InputError(f"--backend openvino runs on the CPU, but --device is {device}; give --device cpu")
    if backend != "auto":
        if not _installed(backend):
            raise _missing(_TITLES[backend], backend)
        return BackendChoice(backend)
    if device != "cpu":
        if not _installed("onnxruntime"):
            raise _missing(_TITLES["onnxruntime"], "onnxruntime")
        return BackendChoice("onnxruntime", "it alone runs ONNX files on a GPU")
    if precision != "fp32":
        if not _installed("onnxruntime"):
            raise _missing(_TITLES["onnxruntime"], "onnxruntime")
        return BackendChoice("onnxruntime", f"OpenVINO does not run {precision} files as they are")
    have = [name for name in ("onnxruntime", "openvino") if _installed(name)]
    if not have:
        raise _missing("ONNX Runtime or OpenVINO", "onnxruntime")
    if len(have) == 1:
        other = _TITLES["openvino" if have == ["onnxruntime"] else "onnxruntime"]
        return BackendChoice(have[0], f"{other} is not installed")
    if platform.machine() in ("x86_64", "AMD64") and _cpu_flags() >= _NEEDED_FLAGS:
        return BackendChoice("openvino", "this CPU has AVX2")
    return BackendChoice("onnxruntime", "this CPU has no AVX2")


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
