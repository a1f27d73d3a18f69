"""A diffusers checkpoint on an NVIDIA GPU, run by PyTorch where the chain's buffers are: eager or compiled.

Like `torch_checkpoint` and `torch_call` it imports torch; nothing imports it before it is asked for.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from runtime.device.driver import driver_facts, require_gpu
from runtime.device.interface import DeviceMemory
from runtime.device.memory import open_device_memory
from runtime.engines.checkpoint_folder import read_checkpoint_folder
from runtime.engines.torch_call import TORCH_TYPES, TorchCall, TorchModuleEngine
from runtime.engines.torch_checkpoint import TorchEngine, load_checkpoint
from runtime.engines.torch_guidance import Guided
from runtime.engines.trajectories import make_golden
from runtime.engines.verification import predict_with, verify_once
from runtime.formats.golden import Golden
from runtime.formats.place import Place
from runtime.process_flags import ProcessFlags


class TorchDeviceEngine(TorchModuleEngine):
    """A checkpoint on a GPU: a `runtime.device.interface.DeviceEngine`.

    The time path is evaluated once, in float32, for every timestep (`fold_time`): what depends on t alone is looked up,
    so no precision can hurt it and a call launches fewer kernels.

    Args:
        folder: a checkpoint folder, see `load_checkpoint`.
        precision: of the network's arithmetic, one of `ENGINE_PRECISIONS`; fp32 is IEEE float32, without TF32.
        compiled: whether torch.compile makes the kernels, which takes a minute at the first use of a batch size.
        flags: a variance or a clip other than the checkpoint's.
        allow_pickle: see `load_checkpoint`.
        memory: of the GPU; None to open the first one.
        device: where PyTorch runs.
        verifier: is asked before a batch size of a compiled engine is used for the first time.

    Raises:
        InputError: as `load_checkpoint`, or an unknown precision.
        DeviceUnavailableError: no GPU, or a PyTorch that was built without CUDA.
    """

    def __init__(
        self,
        folder: Path | str,
        precision: str = "fp32",
        compiled: bool = False,
        flags: ProcessFlags | None = None,
        allow_pickle: bool = False,
        memory: DeviceMemory | None = None,
        device: str = "cuda",
        verifier: FirstUse | None = None,
    ) -> None:
        if precision not in TORCH_TYPES:
            raise InputError(f"precision is {precision!r}, expected one of {', '.join(TORCH_TYPES)}")
        if device != "cpu":
            _expect_cuda()
        memory = open_device_memory() if memory is None else memory
        checkpoint = load_checkpoint(folder, allow_pickle, flags)
        self.path = checkpoint.folder
        process = (flags or ProcessFlags()).applied_to(checkpoint.process, str(folder))
        # Another precision is another network: a run that was begun with one is not finished with the other.
        other = hashlib.sha256(f"{checkpoint.network_sha256} {precision}".encode()).hexdigest()
        sha256 = checkpoint.network_sha256 if precision == "fp32" else other
        network: torch.nn.Module = _Folded(checkpoint.unet)
        with torch.no_grad():
            fold_time(checkpoint.unet, process.schedule.num_train_timesteps)
        if process.is_guided:
            network = Guided(network, process, together=True)
        if compiled:
            # Of diffusers' own functions, which ask for a version once and keep the answer.
            warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        super().__init__(network, process, precision, memory, sha256, compiled, device)
        self._verifier = verifier

    def bind_device(self, x: int, t: int, prediction: int, batch_size: int, stream: int, *conditions: int) -> TorchCall:
        """As `DeviceEngine.bind_device`.

        Raises:
            VerificationError: the kernels that were compiled for this batch differ from the reference.
        """
        if self._verifier is not None and self.compiled:
            self._verifier.ensure(self, batch_size)
        return super().bind_device(x, t, prediction, batch_size, stream, *conditions)


def open_checkpoint_on_gpu(
    folder: Path, precision: str, compiled: bool, flags: ProcessFlags | None, allow_pickle: bool
) -> TorchDeviceEngine:
    """Open a checkpoint on the first GPU. In low precision it is verified now if it has not been on this machine;
    compiled, at the first use of each batch size, whose kernels are its own.

    Raises:
        InputError, DeviceUnavailableError: as `TorchDeviceEngine`.
        VerificationError: it differs from PyTorch in float32 on the CPU.
    """
    verifier = FirstUse(folder, allow_pickle, gpu_place, flags)
    engine = TorchDeviceEngine(folder, precision, compiled, flags, allow_pickle, verifier=verifier)
    if precision != "fp32" and not compiled:
        verifier.ensure(engine)
    return engine


def gpu_place() -> Place:
    """The first GPU, its driver, and the libraries that compute there."""
    driver = driver_facts()
    gpu = require_gpu(driver, "device cuda", "run on this machine with `device=cpu`")
    runtime = f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    return Place(gpu.name, driver.version, runtime)


class FirstUse:
    """Verifies engines of one checkpoint once for each machine, against the network in float32 on the CPU.

    Args:
        folder, allow_pickle: of the checkpoint.
        find_place: says where the engines run.
        flags: the process of a checkpoint that does not describe it.
    """

    def __init__(
        self, folder: Path, allow_pickle: bool, find_place: Callable[[], Place], flags: ProcessFlags | None = None
    ) -> None:
        self._folder, self._allow_pickle, self._find_place, self._flags = folder, allow_pickle, find_place, flags
        self._seen: set[int | None] = set()

    def ensure(self, engine: TorchDeviceEngine, batch_size: int | None = None) -> None:
        """Verify it unless that was done here.

        Args:
            engine: of the checkpoint.
            batch_size: the only one to call it with; None for batches of 5, 2 and 1.

        Raises:
            VerificationError: it differs; the message holds the table.
        """
        if batch_size in self._seen:  # also while it is being verified, which binds it
            return
        self._seen.add(batch_size)
        try:
            self._verify(engine, batch_size)
        except BaseException:
            self._seen.discard(batch_size)
            raise

    def _verify(self, engine: TorchDeviceEngine, batch_size: int | None) -> None:
        # As it was trained: a variance or a clip that the user prefers would change the chain, not the network.
        process = read_checkpoint_folder(self._folder, self._flags).process.with_guidance()

        def make_reference() -> Golden:
            reference = TorchEngine(self._folder, flags=self._flags, allow_pickle=self._allow_pickle)
            return make_golden(process, predict_with(reference), engine.precision)

        verify_once(
            engine,
            self._folder,
            {"sha256": engine.sha256, "precision": engine.precision, "compiled": engine.compiled, "batch": batch_size},
            self._find_place(),
            make_reference,
            process,
            "PyTorch in float32 on the CPU",
            "run it without torch.compile, or in a higher precision",
            None if batch_size is None else lambda _: batch_size,
        )


class _Folded(torch.nn.Module):
    """diffusers' network, folded, as a function of x, t and a class label."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet, self._num_labels = unet, unet.config.num_class_embeds

    def forward(self, x: torch.Tensor, t: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
        for label in labels:
            t = t * self._num_labels + label  # as `_LabeledRows` takes them apart
        prediction: torch.Tensor = self.unet(x, t, return_dict=False)[0]
        return prediction


class _Rows(torch.nn.Module):
    """In place of the sinusoids: a row of a table for each timestep."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.table[timesteps]
        return rows


class _LabeledRows(torch.nn.Module):
    """In place of the sinusoids of a class-conditional network: the sum of two embeddings, projected for every block.

    In float32 whatever the network is in: its tables stay so when it is converted.
    """

    def __init__(self, times: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        for name, values in (("times", times), ("labels", labels), ("weight", weight), ("bias", bias)):
            self.register_buffer(name, values)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        num_labels = len(self.labels)
        embedding = self.times[codes // num_labels] + self.labels[codes % num_labels]
        return torch.nn.functional.linear(torch.nn.functional.silu(embedding), self.weight, self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        device = fn(torch.empty(0)).device
        return super()._apply(lambda tensor: tensor.to(device), recurse)


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
    if unet.class_embedding is not None:
        _fold_labels(unet, embedding, projecting)
        return
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


def _fold_labels(unet: UNet2DModel, embedding: torch.Tensor, projecting: list[Any]) -> None:
    """What is left to compute of the embeddings of timestep [T, C] and label, in one place for all blocks."""
    plain = all(
        isinstance(block, ResnetBlock2D)
        and isinstance(block.nonlinearity, torch.nn.SiLU)
        and not block.skip_time_act
        and isinstance(block.time_emb_proj, torch.nn.Linear)
        for block in projecting
    )
    if not (plain and projecting):
        raise InputError(
            "a class-conditional network whose blocks project the embeddings otherwise than ResnetBlock2D runs on the "
            "CPU alone; give `device=cpu`, or export it"
        )
    weight = torch.cat([block.time_emb_proj.weight for block in projecting])
    bias = torch.cat([block.time_emb_proj.bias for block in projecting])
    first = 0
    for block in projecting:
        width = block.time_emb_proj.out_features
        block.time_emb_proj, block.skip_time_act = _Columns(first, first + width), True
        first += width
    labels = unet.class_embedding.weight
    unet.time_proj, unet.time_embedding = _LabeledRows(embedding, labels, weight, bias), torch.nn.Identity()
    unet.class_embedding = None


def _expect_cuda() -> None:
    missing = None
    if not torch.backends.cuda.is_built():
        missing = f"the installed PyTorch {torch.__version__} is built without CUDA"
    elif not torch.cuda.is_available():
        missing = "PyTorch finds no NVIDIA driver or no GPU"
    if missing is not None:
        raise DeviceUnavailableError(f"device cuda: {missing}; run on this machine with `device=cpu`")
