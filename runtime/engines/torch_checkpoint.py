"""PyTorch and a diffusers checkpoint folder: the reference that every other engine is compared with.

Like every `torch_*.py` here it imports torch, so nothing imports it before it is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from diffusers import UNet2DModel

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from diffusion.process import Process
from runtime.engines.checkpoint_folder import read_checkpoint_folder
from runtime.process_flags import ProcessFlags

_SAFETENSORS, _PICKLE = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
# What the layers of attention were called before diffusers 0.15, as in the published ddpm-cifar10-32.
_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LFS_POINTER = b"version https://git-lfs"


class Network(torch.nn.Module):
    """A `UNet2DModel` under the network contract: x [N, C, H, W] and t [N], both float, → prediction."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet
        self._takes_whole_t = unet.config.time_embedding_type == "learned"
        self.eval()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The prediction, [N, C or 2C, H, W]."""
        conditioning = t.long() if self._takes_whole_t else t  # learned embeddings are rows of a table
        prediction: torch.Tensor = self.unet(x, conditioning, return_dict=False)[0]
        return prediction


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network as it was saved.

    Attributes:
        folder: where it was read from.
        process: what it was trained to do.
        unet: diffusers' `UNet2DModel`, on the CPU, float32, in eval mode, without gradients.
        sha256: of the weights file.
    """

    folder: Path
    process: Process
    unet: UNet2DModel
    sha256: str

    @property
    def num_parameters(self) -> int:
        """How many numbers the network has learned."""
        return sum(parameter.numel() for parameter in self.unet.parameters())

    def predict(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The reference prediction, float32 [N, C or 2C, H, W], for x [N, C, H, W] and t [N], float32."""
        with torch.inference_mode():
            prediction: np.ndarray = Network(self.unet)(torch.from_numpy(x), torch.from_numpy(t)).numpy()
        return prediction


class TorchEngine:
    """The reference engine: eager PyTorch in float32.

    Args:
        folder: a checkpoint folder, see `load_checkpoint`.
        device: "cpu", "cuda" or "cuda:1" and so on.
        threads: of the CPU, for the whole program; 0 leaves PyTorch's own choice.
        flags: a variance or a clip other than the checkpoint's.
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
        checkpoint = load_checkpoint(folder, allow_pickle)
        self.process = (flags or ProcessFlags()).applied_to(checkpoint.process, str(folder))
        self.sha256 = checkpoint.sha256
        self.name = f"PyTorch {torch.__version__} ({device.upper()})"
        self.precision = "fp32"
        self._folder = checkpoint.folder
        self._network = Network(checkpoint.unet).to(self._device)

    def batch_range(self) -> tuple[int, int | None]:
        """As `Engine.batch_range`: any."""
        return 1, None

    def bind(self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray) -> Callable[[], None]:
        """As `runtime.engines.interface.Engine.bind`.

        On the CPU, PyTorch reads and writes the NumPy buffers themselves; on a GPU each call copies.
        """
        self._check_buffers(x, t, prediction)
        host_x, host_t, host_prediction = map(torch.from_numpy, (x, t, prediction))
        network, device = self._network, self._device

        def call_on_cpu() -> None:
            with torch.inference_mode():
                host_prediction.copy_(network(host_x, host_t))

        if device.type == "cpu":
            return call_on_cpu
        device_x, device_t = torch.empty_like(host_x, device=device), torch.empty_like(host_t, device=device)

        def call_on_gpu() -> None:
            # Unless told otherwise cuDNN rounds the factors of float32 convolutions to TF32: not a reference.
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                device_x.copy_(host_x)
                device_t.copy_(host_t)
                host_prediction.copy_(network(device_x, device_t))

        return call_on_gpu

    def _check_buffers(self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray) -> None:
        shape, num = self.process.sample, x.shape[0]
        expected = {
            "x": (x, (num, *shape.chw)),
            "t": (t, (num,)),
            "prediction": (prediction, (num, self.process.prediction_channels, shape.height, shape.width)),
        }
        for name, (array, wanted) in expected.items():
            if array.shape != wanted or array.dtype != np.float32 or not array.flags.c_contiguous:
                raise InputError(
                    f"{self._folder}: {name} is {array.dtype} {array.shape}, expected float32 {wanted}, C-contiguous"
                )


def load_checkpoint(folder: Path | str, allow_pickle: bool = False) -> Checkpoint:
    """Read a folder that `train.run` or diffusers' `DDPMPipeline.save_pretrained` wrote.

    Args:
        folder: holds model_index.json, unet/ and scheduler/, and from `train.run` also train.json.
        allow_pickle: read weights from a `.bin` where there is no safetensors file (tensors only, no code).

    Raises:
        InputError: as `read_checkpoint_folder`; or weights that are missing, truncated, of another network,
            not finite, or not those that train.json was written for.
    """
    folder = Path(folder)
    description = read_checkpoint_folder(folder)
    process = description.process
    unet = _make_unet(folder / "unet" / "config.json", description.unet_config)
    path, content = _read_weights(folder / "unet", allow_pickle)
    sha256 = hashlib.sha256(content).hexdigest()
    if process.checkpoint_sha256 not in (None, sha256):
        raise InputError(
            f"{path}: SHA-256 is {sha256}, but train.json was written for {process.checkpoint_sha256}; "
            "put those weights back, or remove train.json to go by diffusers' files alone"
        )
    _fill(unet, _parse_weights(path, content), path)
    return Checkpoint(folder, replace(process, checkpoint_sha256=sha256), unet, sha256)


def _find_device(device: str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise InputError(f"device is {device!r}, expected cpu, cuda or cuda:N; give --device cpu")
    if found.type == "cuda":
        missing = None
        if not torch.backends.cuda.is_built():
            missing = f"the installed PyTorch {torch.__version__} is built without CUDA"
        elif not torch.cuda.is_available():
            missing = "PyTorch finds no NVIDIA driver or no GPU"
        elif (found.index or 0) >= torch.cuda.device_count():
            missing = f"PyTorch finds {torch.cuda.device_count()} GPUs, counted from 0"
        if missing is not None:
            raise DeviceUnavailableError(f"device {device}: {missing}; run on this machine with --device cpu")
    return found


def _make_unet(path: Path, config: Mapping[str, Any]) -> UNet2DModel:
    try:
        with torch.device("meta"):  # no memory and no random numbers for weights that the file replaces
            return UNet2DModel.from_config(dict(config)).eval()
    except Exception as error:  # diffusers and torch raise whatever an impossible configuration leads to
        raise InputError(
            f"{path}: diffusers cannot build this network ({_one_line(error)}); correct the file"
        ) from error


def _read_weights(folder: Path, allow_pickle: bool) -> tuple[Path, bytes]:
    path = folder / _SAFETENSORS
    if not path.exists():
        path = folder / _PICKLE
        if not path.exists():
            found = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
            raise InputError(
                f"{folder}: found {found}, expected the weights in one file {_SAFETENSORS}; "
                "copy the whole checkpoint, or save it again with diffusers"
            )
        if not allow_pickle:
            raise InputError(
                f"{path}: is a pickle, expected {_SAFETENSORS}; save the pipeline again with "
                "safe_serialization=True, or give --allow-pickle if you trust where it comes from"
            )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy the checkpoint again") from None
    if content.startswith(_LFS_POINTER):
        raise InputError(f"{path}: is a Git LFS pointer, expected the weights; run `git lfs pull` there")
    return path, content


def _parse_weights(path: Path, content: bytes) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        _check_size(path, content)
        try:
            return dict(safetensors.torch.load(content))
        except Exception as error:  # safetensors' own exception, or torch's for a type it does not know
            raise InputError(
                f"{path}: not a safetensors file ({_one_line(error)}); copy or train the checkpoint again"
            ) from error
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path}: found {len(content)} bytes, expected a pickle that holds tensors and nothing else "
            f"({_one_line(error)}); copy or train the checkpoint again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: found {type(state).__name__}, expected a table of tensors; save it again")
    return state


def _check_size(path: Path, content: bytes) -> None:
    # A safetensors file: the header's length (8 bytes, little-endian), the header (JSON), the tensors.
    expected = 8 + max(int.from_bytes(content[:8], "little"), 2)
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):  # safetensors will complain
        entries = json.loads(content[8:expected])
        expected += max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
    if len(content) < expected:
        raise InputError(
            f"{path}: truncated: found {len(content)} bytes, expected {expected}; copy or train the checkpoint again"
        )


def _fill(unet: UNet2DModel, state: Mapping[str, torch.Tensor], path: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    found = {_current_name(name): tensor for name, tensor in state.items()}
    odd = "the weights and config.json are not of one checkpoint: copy or train it again"
    for verb, names in (("lacks", set(expected) - set(found)), ("also holds", set(found) - set(expected))):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(
                f"{path}: {verb} {min(names)!r}{others}, expected {len(expected)} tensors by config.json; {odd}"
            )
    for name, shape in expected.items():
        if tuple(found[name].shape) != shape:
            raise InputError(f"{path}: {name} has shape {tuple(found[name].shape)}, expected {shape}; {odd}")
        found[name] = found[name].to(torch.float32).contiguous()
        # A sum of float32 numbers cannot overflow float64, and needs no second copy of them.
        if not math.isfinite(found[name].sum(dtype=torch.float64).item()):
            raise InputError(
                f"{path}: {name} holds values that are not finite, expected numbers: the training diverged; train again"
            )
    unet.load_state_dict(found, strict=True, assign=True)
    unet.requires_grad_(False)


def _current_name(name: str) -> str:
    scope, *last = name.rsplit(".", maxsplit=2)
    if len(last) == 2 and "attentions" in scope.split("."):
        layer, kind = last
        return f"{scope}.{_OLD_ATTENTION_NAMES.get(layer, layer)}.{kind}"
    return name


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:160] + "…"
