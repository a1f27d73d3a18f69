"""Any PyTorch module as an engine on a GPU, so that chains can be run where diffusers is not installed.

Its calls are those that `runtime.engines.torch_device` makes of a checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from diffusion.process import Process
from runtime.device.interface import DeviceEngine, DeviceMemory
from runtime.engines.torch_call import TorchCall, tensor_at
from runtime.formats.precision import ENGINE_PRECISIONS, PRECISIONS

_OF_TYPE = {PRECISIONS[name].element_type.name: name for name in ENGINE_PRECISIONS}
TYPES = {io_type: getattr(torch, io_type) for io_type in _OF_TYPE}


class ModuleEngine(DeviceEngine):
    """A `runtime.device.interface.DeviceEngine`.

    Args:
        module: (x [N, C, H, W], t int64 [N]) → prediction [N, C or 2C, H, W], in `io_type` and on `device`.
        process: of the network.
        io_type: of x and of the prediction.
        memory: of the GPU.
        name: for reports.
        compiled: whether torch.compile makes the kernels.
        device: where PyTorch runs.
    """

    t_type, sha256 = "int64", "0" * 64

    def __init__(
        self,
        module: torch.nn.Module,
        process: Process,
        io_type: str,
        memory: DeviceMemory,
        name: str,
        compiled: bool = False,
        device: str = "cuda",
    ) -> None:
        self.process, self.io_type, self.memory, self.name = process, io_type, memory, name
        self.precision = _OF_TYPE[io_type]
        self._device = torch.device(device)
        image_format = torch.contiguous_format if io_type == "float32" else torch.channels_last

        def fill(x: torch.Tensor, t: torch.Tensor, prediction: torch.Tensor) -> None:
            prediction.copy_(module(x.contiguous(memory_format=image_format), t))

        self._run: Callable[..., None] = fill
        if self._device.type == "cuda":
            # The weights' last conversions may still be on PyTorch's own stream, for which a chain's does not wait.
            torch.cuda.synchronize(self._device)
        if compiled:
            self._run = torch.compile(fill, mode="max-autotune-no-cudagraphs", dynamic=False)

    def batch_range(self) -> tuple[int, int | None]:
        """Any batch."""
        return 1, None

    def call_bytes(self, batch_size: int) -> int:
        """Unknown."""
        del batch_size
        return 0

    def bind_device(self, x: int, t: int, prediction: int, batch_size: int, stream: int, *conditions: int) -> TorchCall:
        """As `DeviceEngine.bind_device`."""
        del stream, conditions  # there are none
        shape, kind = self.process.sample, TYPES[self.io_type]
        channels = self.process.prediction_channels
        tensors = (
            tensor_at(x, (batch_size, *shape.chw), kind, self._device),
            tensor_at(t, (batch_size,), torch.int64, self._device),
            tensor_at(prediction, (batch_size, channels, shape.height, shape.width), kind, self._device),
        )
        return TorchCall(self.name, self._run, tensors, self._device, self.memory)


@contextlib.contextmanager
def inference_settings() -> Iterator[None]:
    """No gradients; cuDNN's fastest algorithm, in IEEE float32 where the network is float32."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        yield
