"""A diffusers checkpoint on an NVIDIA GPU, run by PyTorch where the chain's buffers are: eager or compiled.

Like `torch_checkpoint` and `torch_call` it imports torch; nothing imports it before it is asked for.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from runtime.device.interface import DeviceEngine, DeviceMemory
from runtime.device.memory import open_device_memory
from runtime.engines.torch_call import TorchCall, tensor_at
from runtime.engines.torch_checkpoint import load_checkpoint
from runtime.formats.precision import ENGINE_PRECISIONS, PRECISIONS
from runtime.process_flags import ProcessFlags

TORCH_TYPES = {name: getattr(torch, PRECISIONS[name].element_type.name) for name in ENGINE_PRECISIONS}
# Every kernel that inductor knows is timed; the graph is ours, so inductor shall make none.
_COMPILE_MODE = "max-autotune-no-cudagraphs"


class TorchDeviceEngine(DeviceEngine):
    """A checkpoint on a GPU: a `runtime.device.interface.DeviceEngine`.

    The time path is evaluated once, in float32, for every timestep (`fold_time`): what depends on t alone is looked up,
    so no precision can hurt it and a call launches fewer kernels.

    Args:
        folder: a checkpoint folder, see `load_checkpoint`.
        precision: of the network's arithmetic, one of `ENGINE_PRECISIONS`; fp32 is IEEE float32, without TF32.
        compiled: whether torch.compile makes the kernels, which takes minutes at the first use of a batch size.
        flags: a variance or a clip other than the checkpoint's.
        allow_pickle: see `load_checkpoint`.
        memory: of the GPU; None to open the first one.
        device: where PyTorch runs.

    Raises:
        InputError: as `load_checkpoint`, or an unknown precision.
        DeviceUnavailableError: no GPU, or a PyTorch that was built without CUDA.
    """

    t_type = "int64"

    def __init__(
        self,
        folder: Path | str,
        precision: str = "fp32",
        compiled: bool = False,
        flags: ProcessFlags | None = None,
        allow_pickle: bool = False,
        memory: DeviceMemory | None = None,
        device: str = "cuda",
    ) -> None:
        if precision not in TORCH_TYPES:
            raise InputError(f"precision is {precision!r}, expected one of {', '.join(TORCH_TYPES)}")
        if device != "cpu":
            _expect_cuda()
        self.memory = open_device_memory() if memory is None else memory
        checkpoint = load_checkpoint(folder, allow_pickle)
        self.path = checkpoint.folder
        self.process = (flags or ProcessFlags()).applied_to(checkpoint.process, str(folder))
        self.precision, self.io_type = precision, PRECISIONS[precision].element_type.name
        # Another precision is another network: a run that was begun with one is not finished with the other.
        other = hashlib.sha256(f"{checkpoint.network_sha256} {precision}".encode()).hexdigest()
        self.sha256 = checkpoint.network_sha256 if precision == "fp32" else other
        self.name = f"PyTorch {torch.__version__} ({device.upper()}, {precision}{', compiled' if compiled else ''})"
        self._device = torch.device(device)
        with torch.no_grad():
            fold_time(checkpoint.unet, self.process.schedule.num_train_timesteps)
        # Tensor cores read 16-bit images channels last; converting at every convolution would cost as much as it.
        image_format = torch.contiguous_format if precision == "fp32" else torch.channels_last
        network = _Call(checkpoint.unet, image_format).to(
            self._device, TORCH_TYPES[precision], memory_format=image_format
        )
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the chains' streams do not wait for the one that made the weights
        self._run: Callable[..., None] = network
        if compiled:
            # Of diffusers' own functions, which ask for a version once and keep the answer.
            warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
            self._run = torch.compile(network, mode=_COMPILE_MODE, dynamic=False)

    def bind_device(self, x: int, t: int, prediction: int, batch_size: int, stream: int) -> TorchCall:
        """As `DeviceEngine.bind_device`: PyTorch reads and writes the buffers themselves."""
        shape, kind = self.process.sample, TORCH_TYPES[self.precision]
        channels = self.process.prediction_channels
        tensors = (
            tensor_at(x, (batch_size, *shape.chw), kind, self._device),
            tensor_at(t, (batch_size,), torch.int64, self._device),
            tensor_at(prediction, (batch_size, channels, shape.height, shape.width), kind, self._device),
        )
        return TorchCall(self.name, self._run, tensors, self._device, self.memory)


class _Call(torch.nn.Module):
    """A network that fills a buffer: compiled, the last kernel writes there."""

    def __init__(self, unet: UNet2DModel, image_format: torch.memory_format) -> None:
        super().__init__()
        self.unet, self.image_format = unet, image_format

    def forward(self, x: torch.Tensor, t: torch.Tensor, prediction: torch.Tensor) -> None:
        prediction.copy_(self.unet(x.contiguous(memory_format=self.image_format), t, return_dict=False)[0])


class _Rows(torch.nn.Module):
    """In place of the sinusoids: a row of a table for each timestep."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.table[timesteps]
        return rows


class _Columns(torch.nn.Module):
    """In place of a block's projection of the time embedding: its columns of that row."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        return row[:, self.first : self.last]


def fold_time(unet: UNet2DModel, num_timesteps: int) -> None:
    """Replace what depends on t alone by a table, in place; from then on t is an integer.

    The sinusoids and the MLP behind them become rows of the table, and so do the residual blocks' projections of their
    result: one look-up instead of two matrix products and one for each block. Where a block projects in another way
    than diffusers' `ResnetBlock2D`, the projections stay.

    Args:
        unet: on the CPU, in float32.
        num_timesteps: T, how many rows.
    """
    t = torch.arange(num_timesteps)
    conditioning = t if unet.config.time_embedding_type == "learned" else t.to(torch.float32)
    embedding = unet.time_embedding(unet.time_proj(conditioning).to(torch.float32))  # [T, C]
    projecting = [module for module in unet.modules() if getattr(module, "time_emb_proj", None) is not None]
    if all(isinstance(module, ResnetBlock2D) for module in projecting):
        columns, first = [], 0
        for block in projecting:
            activated = embedding if block.skip_time_act else block.nonlinearity(embedding)
            columns.append(block.time_emb_proj(activated))
            width = columns[-1].shape[1]
            block.time_emb_proj, block.skip_time_act = _Columns(first, first + width), True
            first += width
        embedding = torch.cat(columns, dim=1) if columns else embedding
    unet.time_proj, unet.time_embedding = _Rows(embedding), torch.nn.Identity()


def _expect_cuda() -> None:
    missing = None
    if not torch.backends.cuda.is_built():
        missing = f"the installed PyTorch {torch.__version__} is built without CUDA"
    elif not torch.cuda.is_available():
        missing = "PyTorch finds no NVIDIA driver or no GPU"
    if missing is not None:
        raise DeviceUnavailableError(f"device cuda: {missing}; run on this machine with --device cpu")
