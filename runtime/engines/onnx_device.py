"""ONNX Runtime on an NVIDIA GPU, reading and writing the chain's buffers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from commands.errors import reason
from diffusion.errors import InputError
from runtime.device.driver import driver_facts
from runtime.device.interface import DeviceEngine, DeviceMemory
from runtime.device.memory import open_device_memory
from runtime.engines.network_contract import GUIDE, timesteps_shape
from runtime.engines.onnx_file import OnnxFile
from runtime.engines.onnx_runtime import OnnxRuntimeEngine
from runtime.formats.place import Place
from runtime.process_flags import ProcessFlags

_T_TYPES: dict[type, str] = {np.float32: "float32", np.int64: "int64"}


class OnnxDeviceEngine(DeviceEngine, OnnxRuntimeEngine):
    """An ONNX ε-network run by ONNX Runtime's CUDA provider: a `runtime.device.interface.DeviceEngine`.

    ONNX Runtime runs on a stream of its own and waits for it, so each call waits for the chain's stream before and is
    done when it returns; it cannot be captured. Nothing is copied to the host.

    Args:
        path: as `OnnxRuntimeEngine`.
        flags: what the file's metadata does not say.
        memory: of the GPU; None to open the first one.
        device: where ONNX Runtime runs.
        file: as `OnnxRuntimeEngine`.

    Raises:
        InputError: as `OnnxRuntimeEngine`, or timesteps of a type that the chain cannot write.
        DeviceUnavailableError: no CUDA provider, or no GPU for it.
    """

    io_type = "float32"

    def __init__(
        self,
        path: Path,
        flags: ProcessFlags | None = None,
        memory: DeviceMemory | None = None,
        device: str = "cuda",
        file: OnnxFile | None = None,
    ) -> None:
        super().__init__(path, device, flags=flags, file=file)
        if self._t_type not in _T_TYPES:
            raise InputError(
                f"{path}: takes its timesteps as {np.dtype(self._t_type).name}, expected float32 or int64 on a GPU; "
                "run it with `device=cpu`, or export it again with `python -m export.to_onnx`"
            )
        if self.shares_timestep:
            raise InputError(
                f"{path}: takes one timestep for the whole batch ({self._t.name}), expected [N] on a GPU; "
                f"run it with `device=cpu`, or wrap it as {GUIDE} shows"
            )
        self.t_type = _T_TYPES[self._t_type]
        self.memory = open_device_memory() if memory is None else memory
        self._device = device

    def place(self) -> Place:
        """Where it runs."""
        facts = driver_facts()
        gpu = facts.gpus[0].name if facts.gpus else self._device
        return Place(gpu, facts.version, f"ONNX Runtime {ort.__version__}")

    def bind_device(self, x: int, t: int, prediction: int, batch_size: int, stream: int, *conditions: int) -> OnnxCall:
        """As `DeviceEngine.bind_device`."""
        del stream  # calls are told
        self.check_batch(batch_size)
        shape = self.process.sample
        predicted = (batch_size, self.process.prediction_channels, shape.height, shape.width)
        binding = self._session.io_binding()
        binding.bind_input(self._x.name, self._device, 0, np.float32, (batch_size, *shape.chw), x)
        t_shape = timesteps_shape(self._t, self._x, batch_size)
        binding.bind_input(self._t.name, self._device, 0, self._t_type, t_shape, t)
        for of, address in zip(self.process.conditions, conditions, strict=True):
            kind = np.dtype(of.type).type
            binding.bind_input(of.name, self._device, 0, kind, (batch_size, *of.shape), address)
        binding.bind_output(self.output_name, self._device, 0, np.float32, predicted, prediction)
        return OnnxCall(f"{self.path}, a batch of {batch_size}", self._session, binding, self.memory)


class OnnxCall:
    """A `runtime.device.interface.DeviceCall`, but for the waiting."""

    def __init__(self, what: str, session: ort.InferenceSession, binding: ort.IOBinding, memory: DeviceMemory) -> None:
        self._what, self._run, self._binding, self._memory = what, session.run_with_iobinding, binding, memory

    def enqueue(self, stream: int) -> None:
        """Run one call after what is on the stream; done when this returns.

        Raises:
            RuntimeError: ONNX Runtime refused, with its own words.
        """
        self._memory.synchronize(stream)
        try:
            self._run(self._binding)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise RuntimeError(f"{self._what}: the network fails ({reason(error)})") from error

    def graph(self, stream: int) -> int | None:
        """None: a call that waits cannot be captured."""
        del stream
        return None
