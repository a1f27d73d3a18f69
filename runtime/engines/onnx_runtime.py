"""ONNX Runtime, on the CPU or an NVIDIA GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from commands.errors import DeviceUnavailableError, reason
from diffusion.errors import InputError
from runtime.engines.condition_inputs import metadata_of, stored_conditions, without_conditions
from runtime.engines.interface import Engine
from runtime.engines.network_contract import (
    FedTimesteps,
    call_failed,
    check_shapes,
    only_output,
    process_of_onnx,
    tell_inputs_apart,
)
from runtime.engines.onnx_file import OnnxFile, read_onnx
from runtime.formats.tensor_spec import TensorSpec
from runtime.process_flags import ProcessFlags

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
_FLOAT = "tensor(float)"
_CONDITION_TYPES = {"int64": "tensor(int64)", "float32": _FLOAT}
_SEVERITY_FATAL = 4


class OnnxRuntimeEngine(Engine):
    """An ONNX ε-network run by ONNX Runtime.

    Args:
        path: the file: one input of rank 4 (x), and t, in any order and under any name, and one output of rank 4, or
            several and the flag that says which.
        device: "cpu" or "cuda".
        threads: of the CPU provider; 0 for as many as this process may use.
        flags: what the file's metadata does not say.
        file: what `read_onnx` said of it, where it was asked already.

    Attributes:
        file: what was read of the file.
        output_name: of the prediction.

    Raises:
        InputError: no such file, not an ONNX file, not an ε-network, or a process that nothing describes.
        DeviceUnavailableError: no CUDA provider, no GPU for it, or bf16 convolutions on the CPU.
    """

    path: Path

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        threads: int = 0,
        flags: ProcessFlags | None = None,
        file: OnnxFile | None = None,
    ) -> None:
        self.path = path
        self.file = file or read_onnx(path)
        self.precision, self.sha256, self.has_digest = self.file.precision, self.file.sha256, self.file.has_digest
        self._session = _open_session(path, device, threads, self.precision)
        self.file.check_unchanged()
        try:
            inputs = [_spec(entry) for entry in self._session.get_inputs()]
            outputs = [_spec(entry) for entry in self._session.get_outputs()]
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: has a name that is not UTF-8 ({error}); export it again") from None
        metadata = metadata_of(path, self._session)
        conditions = stored_conditions(path, metadata)
        own = without_conditions(path, inputs, conditions, _CONDITION_TYPES)
        self._x, self._t = tell_inputs_apart(path, own, _FLOAT, _TYPES)
        self._t_type = _TYPES[self._t.element_type]
        self.shares_timestep = self._t.is_shared_by(self._x)
        flags = flags or ProcessFlags()
        _, prediction = only_output(path, outputs, _FLOAT, flags.output_name)
        self.output_name = prediction.name
        self.process = process_of_onnx(self.file, metadata, self._x, flags)
        check_shapes(path, self.process, self._x, prediction)
        low = "" if self.precision == "fp32" else f"{self.precision}, "
        self.name = f"ONNX Runtime {ort.__version__} ({low}{device.upper()})"

    def batch_range(self) -> tuple[int, int | None]:
        """As `Engine.batch_range`: one batch alone where the file fixes it."""
        return self._x.batch_range()

    def feeds(self, x: np.ndarray, t: np.ndarray, *conditions: np.ndarray) -> dict[str, np.ndarray]:
        """x [N, C, H, W], t [N] and conditions as the file's inputs, by name."""
        fed_t = FedTimesteps(self.path, self._t, t, self._x, self._t_type)
        fed_t.fill()
        named = {of.name: each for of, each in zip(self.process.conditions, conditions, strict=True)}
        return {self._x.name: x, self._t.name: fed_t.array, **named}

    def _bind(
        self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray, *conditions: np.ndarray
    ) -> Callable[[], None]:
        # ONNX Runtime reads and writes the buffers themselves.
        binding = self._session.io_binding()
        fed_t = FedTimesteps(self.path, self._t, t, self._x, self._t_type)
        names = (self._x.name, self._t.name, *(each.name for each in self.process.conditions))
        for name, array in zip(names, (x, fed_t.array, *conditions), strict=True):
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        binding.bind_output(self.output_name, "cpu", 0, prediction.dtype.type, prediction.shape, prediction.ctypes.data)
        run, options = self._session.run_with_iobinding, ort.RunOptions()
        options.log_severity_level = _SEVERITY_FATAL  # an error is raised anyway; it need not be printed as well
        kept = (x, t, prediction, conditions)  # the binding knows their addresses alone

        def call() -> None:
            fed_t.fill()
            try:
                run(binding, options)
            except Exception as error:  # ONNX Runtime's exceptions have no common base
                raise call_failed(self.path, len(kept[0]), reason(error)) from error

        return call


def _spec(entry: ort.NodeArg) -> TensorSpec:
    return TensorSpec(entry.name, entry.type, tuple(entry.shape))


def _open_session(path: Path, device: str, threads: int, precision: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = _SEVERITY_FATAL
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    wanted = _PROVIDERS[device]
    if wanted not in ort.get_available_providers():
        raise DeviceUnavailableError(
            f"device {device}: the installed ONNX Runtime has no {wanted}; "
            f'install the extra "gpu", or {_instead(precision)}'
        )
    try:
        # Unless told otherwise the GPU rounds the factors of float32 products to TF32: that is not fp32.
        provider = wanted if device == "cpu" else (wanted, {"use_tf32": "0"})
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        if device != "cpu":
            raise DeviceUnavailableError(
                f"device {device}: ONNX Runtime could not start {wanted} ({reason(error)}); {_instead(precision)}"
            ) from error
        # It runs files that only store bf16, or cast to it, and refuses the others before their first run.
        if precision == "bf16" and "NOT_IMPLEMENTED" in str(error):
            raise DeviceUnavailableError(
                f"{path}: computes in bf16, and ONNX Runtime has no bf16 convolutions on the CPU; give `device=cuda`, "
                "or make an engine that has from its checkpoint with `python -m export.to_openvino --bf16` (unet.xml)"
            ) from error
        raise InputError(
            f"{path}: ONNX Runtime cannot read it as an ONNX model ({reason(error)}); "
            "make one with `python -m export.to_onnx`"
        ) from error
    # Asked for CUDA where there is no GPU, ONNX Runtime warns and goes on with the CPU.
    if session.get_providers()[0] != wanted:
        raise DeviceUnavailableError(
            f"device {device}: ONNX Runtime found no usable GPU for {wanted}; {_instead(precision)}"
        )
    return session


def _instead(precision: str) -> str:
    """What runs where no GPU does."""
    if precision == "bf16":
        return "run on this machine with unet.xml, made by `python -m export.to_openvino --bf16`"
    return "run on this machine with `device=cpu`"
