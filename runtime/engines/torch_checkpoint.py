"""PyTorch and a diffusers checkpoint folder: the reference that every other engine is compared with.

Like every `torch_*.py` here it imports torch, so nothing imports it before it is asked for.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel

from commands.errors import DeviceUnavailableError, reason
from diffusion.errors import InputError
from diffusion.process import Process
from runtime.engines.checkpoint_folder import UNET_CONFIG, read_checkpoint_folder
from runtime.engines.interface import Engine
from runtime.engines.torch_call import without_tf32
from runtime.engines.torch_guidance import guided, predict_in_float32
from runtime.engines.torch_weights import fill, load_weights
from runtime.process_flags import ProcessFlags


class Network(torch.nn.Module):
    """A `UNet2DModel` under the network contract: x [N, C, H, W], t [N], both float, and a class label → prediction."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet
        self._takes_whole_t = unet.config.time_embedding_type == "learned"
        self.eval()

    def forward(self, x: torch.Tensor, t: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
        """The prediction, [N, C or 2C, H, W]; labels are int64 [N], of a network that takes them."""
        conditioning = t.long() if self._takes_whole_t else t  # learned embeddings are rows of a table
        prediction: torch.Tensor = self.unet(x, conditioning, *labels, return_dict=False)[0]
        return prediction


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network as it was saved.

    Attributes:
        folder: where it was read from.
        process: what it was trained to do.
        unet: diffusers' `UNet2DModel`, on the CPU, float32, in eval mode, without gradients.
        sha256: of the weights, see `checkpoint_weights.hash_of_weights`.
        network_sha256: of the weights and of the configuration, which says what is computed with them.
        has_digest: whether train.json holds a hash of the weights, with which they were compared.
        weight_types: in which the weights were saved, such as `float16`.
    """

    folder: Path
    process: Process
    unet: UNet2DModel
    sha256: str
    network_sha256: str
    has_digest: bool = False
    weight_types: tuple[str, ...] = ("float32",)

    @property
    def num_parameters(self) -> int:
        """How many numbers the network has learned."""
        return sum(parameter.numel() for parameter in self.unet.parameters())

    @property
    def network(self) -> Network:
        """The network under its contract, without guidance."""
        return Network(self.unet)

    def predict(self, x: np.ndarray, t: np.ndarray, *conditions: np.ndarray) -> np.ndarray:
        """As `predict_in_float32`, of this network."""
        return predict_in_float32(self.network, self.process, x, t, *conditions)


class TorchEngine(Engine):
    """The reference engine: eager PyTorch in float32.

    Args:
        folder: a checkpoint folder, see `load_checkpoint`.
        device: "cpu", "cuda" or "cuda:1" and so on.
        threads: of the CPU, for the whole program; 0 leaves PyTorch's own choice.
        flags: a variance or a clip other than the checkpoint's, or the process of a network alone.
        allow_pickle: see `load_checkpoint`.

    Raises:
        InputError: as `load_checkpoint`, or an unknown device.
        DeviceUnavailableError: a CUDA device that is not here.
    """

    def __init__(
        self,
        folder: Path | str,
        device: str = "cpu",
        threads: int = 0,
        flags: ProcessFlags | None = None,
        allow_pickle: bool = False,
    ) -> None:
        self._device = _find_device(device)
        if threads:
            torch.set_num_threads(threads)
        checkpoint = load_checkpoint(folder, allow_pickle, flags)
        self.process = (flags or ProcessFlags()).applied_to(checkpoint.process, str(folder))
        self.sha256, self.has_digest = checkpoint.network_sha256, checkpoint.has_digest
        self.name = f"PyTorch {torch.__version__} ({device.upper()})"
        self.precision = "fp32"
        self.path = checkpoint.folder
        self._network = guided(checkpoint.network, checkpoint.process).to(self._device)

    def _bind(
        self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray, *conditions: np.ndarray
    ) -> Callable[[], None]:
        # On the CPU, PyTorch reads and writes the NumPy buffers themselves; on a GPU each call copies.
        host_prediction, *given = map(torch.from_numpy, (prediction, x, t, *conditions))
        network, device = self._network, self._device

        def call_on_cpu() -> None:
            with torch.inference_mode():
                host_prediction.copy_(network(*given))

        if device.type == "cpu":
            return call_on_cpu
        copies = [torch.empty_like(each, device=device) for each in given]

        def call_on_gpu() -> None:
            with torch.inference_mode(), without_tf32():
                for copy, each in zip(copies, given, strict=True):
                    copy.copy_(each)
                host_prediction.copy_(network(*copies))

        return call_on_gpu


def load_checkpoint(folder: Path | str, allow_pickle: bool = False, flags: ProcessFlags | None = None) -> Checkpoint:
    """Read a diffusers folder, as `read_checkpoint_folder` describes them, and its weights.

    Args:
        folder: of a pipeline, or of a network alone.
        allow_pickle: read weights from a `.bin` where there is no safetensors file (tensors only, no code).
        flags: the process of a network alone.

    Raises:
        InputError: as `read_checkpoint_folder`; or weights that are missing, truncated, of another network,
            not finite, or not those that train.json was written for.
    """
    folder = Path(folder)
    description = read_checkpoint_folder(folder, flags)
    process = description.process
    config_path = description.unet_folder / UNET_CONFIG
    unet = _make_unet(config_path, description.unet_config)
    _check_runs(config_path, description.unet_config, process)
    weights = load_weights(description.unet_folder, allow_pickle)
    if process.checkpoint_sha256 not in (None, weights.sha256):
        raise InputError(
            f"{weights.source}: SHA-256 is {weights.sha256}, but train.json was written for "
            f"{process.checkpoint_sha256}; put those weights back, or remove train.json if these are meant: diffusers' "
            "files then say what they were trained to do"
        )
    fill(unet, weights)
    # Names with an underscore say who saved it, and where.
    architecture = {name: value for name, value in description.unet_config.items() if not name.startswith("_")}
    described = json.dumps([weights.sha256, architecture], sort_keys=True)
    return Checkpoint(
        folder,
        replace(process, checkpoint_sha256=weights.sha256).with_guidance(),
        unet,
        weights.sha256,
        hashlib.sha256(described.encode()).hexdigest(),
        process.checkpoint_sha256 is not None,
        tuple(sorted({f"{tensor.dtype}".removeprefix("torch.") for tensor in weights.tensors.values()})),
    )


def _find_device(device: str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise InputError(f"device is {device!r}, expected cpu, cuda or cuda:N; give `device=cpu`")
    if found.type == "cuda":
        missing = None
        if not torch.backends.cuda.is_built():
            missing = f"the installed PyTorch {torch.__version__} is built without CUDA"
        elif not torch.cuda.is_available():
            missing = "PyTorch finds no NVIDIA driver or no GPU"
        elif (found.index or 0) >= torch.cuda.device_count():
            missing = f"PyTorch finds {torch.cuda.device_count()} GPUs, counted from 0"
        if missing is not None:
            raise DeviceUnavailableError(f"device {device}: {missing}; run on this machine with `device=cpu`")
    return found


def _make_unet(path: Path, config: Mapping[str, Any]) -> UNet2DModel:
    try:
        with torch.device("meta"):  # no memory and no random numbers for weights that the file replaces
            unet = UNet2DModel.from_config(dict(config)).eval()
        if any(buffer.is_meta for buffer in unet.buffers()):
            # Constants of some blocks, which no file holds: they are only made where there is memory.
            with torch.random.fork_rng(devices=[]):
                unet = UNet2DModel.from_config(dict(config)).eval()
    except Exception as error:  # diffusers and torch raise whatever an impossible configuration leads to
        raise InputError(f"{path}: diffusers cannot build this network ({reason(error)}); correct the file") from error
    return unet


def _check_runs(path: Path, config: Mapping[str, Any], process: Process) -> None:
    """A configuration may make a network whose parts do not fit together."""
    shape = process.sample
    expected = (2, process.prediction_channels, shape.height, shape.width)
    try:
        found = _output_shape(json.dumps(dict(config)), shape.chw, len(process.conditions))
    except Exception as error:  # as above
        raise InputError(f"{path}: diffusers cannot run this network ({reason(error)}); correct the file") from error
    if found != expected:
        raise InputError(f"{path}: the network's output is {found} for x {(2, *shape.chw)}, expected {expected}")


@functools.lru_cache(maxsize=16)
def _output_shape(config: str, chw: tuple[int, int, int], num_labels: int) -> tuple[int, ...]:
    """Run the network without memory, on two samples; a tenth of a second, so once for each configuration."""
    with torch.inference_mode(), torch.device("meta"):
        network = Network(UNet2DModel.from_config(json.loads(config)))
        labels = [torch.zeros(2, dtype=torch.int64)] * num_labels
        return tuple(network(torch.empty(2, *chw), torch.empty(2), *labels).shape)
