"""A small fully connected network conditioned on timesteps, for data without the structure of images, and its folder.

The folder holds `mlp.safetensors`, and `mlp.json` that describes it. diffusers has no pipeline for such networks;
`export.mlp_to_onnx` reads this folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from commands.whole_files import whole_folder
from diffusion.binomial import BINOMIAL_KIND, BinomialProcess
from diffusion.errors import InputError, in_file
from diffusion.noise_schedule import NoiseSchedule
from diffusion.number_checks import shown, whole_number
from diffusion.process import Process
from diffusion.regular_files import read_regular
from runtime.formats.digest import sealed_text
from runtime.formats.fields import read_fields

_LONGEST_PERIOD = 10_000  # of the sinusoids, over 2π
FORMAT = 2
_UNDIGESTED_FORMAT = 1
_MAX_WEIGHTS_BYTES = 2**28  # of networks of some layers
# Of a file of somebody else's, far above what fits two-dimensional data.
_RANGES = {"width": (2, 2**14), "depth": (1, 2**10), "harmonics": (0, 2**10)}
DESCRIPTION, WEIGHTS = "mlp.json", "mlp.safetensors"


@dataclass(frozen=True)
class MlpConfig:
    """The architecture.

    Attributes:
        width: units per hidden layer, even; also of the embedding of t.
        depth: residual layers between the first and the last.
        harmonics: K; the first layer sees sin kx and cos kx, k = 1..K, beside x. Smooth layers learn the fine shape
            of a distribution in few dimensions slowly without (Tancik et al. 2020); bits need none.
    """

    width: int
    depth: int
    harmonics: int = 0

    @classmethod
    def from_json(cls, fields: object, source: str) -> MlpConfig:
        """The inverse of `to_json`. Raises InputError on other fields or sizes that are impossible."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, Mapping) or set(fields) != names:
            raise InputError(
                f"{source}: network is {shown(fields)}, expected the fields {', '.join(sorted(names))}; train again"
            )
        try:
            for name, (lowest, highest) in _RANGES.items():
                whole_number(fields[name], f"network {name}", lowest, highest)
        except InputError as error:
            raise in_file(source, error, "train again") from None
        if fields["width"] % 2:
            raise InputError(f"{source}: network width is {fields['width']}, expected an even number; train again")
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """For `mlp.json`."""
        return dataclasses.asdict(self)


class Mlp(torch.nn.Module):
    """x [N, C, H, W] and t [N], both float → prediction of x's shape: the network contract of every engine.

    Each residual layer is h + W₂ silu(W₁ silu(h) + embedding of t). The embedding has the sinusoids of Vaswani et
    al. 2017, section 3.5, that Ho et al. 2020, appendix B, condition on.

    Args:
        config: the architecture.
        chw: shape of one sample.
    """

    frequencies: torch.Tensor

    def __init__(self, config: MlpConfig, chw: tuple[int, int, int]) -> None:
        super().__init__()
        num_elements, width, half = math.prod(chw), config.width, config.width // 2
        # A fixed table, so that no ONNX tool evaluates the exponential anew and rounds it otherwise.
        exponents = -math.log(_LONGEST_PERIOD) * torch.arange(half, dtype=torch.float64) / half
        self.register_buffer("frequencies", torch.exp(exponents).float(), persistent=False)
        self.time = torch.nn.Sequential(torch.nn.Linear(2 * half, width), torch.nn.SiLU())
        self.harmonics = config.harmonics
        self.first = torch.nn.Linear(num_elements * (1 + 2 * config.harmonics), width)
        self.layers = torch.nn.ModuleList(_Layer(width) for _ in range(config.depth))
        self.last = torch.nn.Linear(width, num_elements)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The prediction, [N, C, H, W]."""
        angles = t.to(self.frequencies.dtype)[:, None] * self.frequencies  # [N, width/2]
        embedding = self.time(torch.cat([torch.sin(angles), torch.cos(angles)], dim=1))  # [N, width]
        flat = x.flatten(1)  # [N, C·H·W]
        features = [flat]
        for k in range(1, self.harmonics + 1):
            features += [torch.sin(k * flat), torch.cos(k * flat)]
        h = self.first(torch.cat(features, dim=1))  # [N, width]
        for layer in self.layers:
            h = layer(h, embedding)
        prediction: torch.Tensor = self.last(torch.nn.functional.silu(h))
        return prediction.reshape(x.shape)


class BitMlp(Mlp):
    """The same for bits: logits of x_start being 1, to which each bit of x_t contributes its own evidence.

    By Bayes' rule logit q(x_0 = 1 | x_t) is the log-likelihood ratio ln q(x_t | x_0 = 1)/q(x_t | x_0 = 0) of the bit,
    ± ln((1 + ᾱ_t)/(1 − ᾱ_t)), plus the logit given all other bits. The first is known and is large where x_t is
    nearly x_0; what is left to learn is of order 1 at every timestep.

    Args:
        config, chw: as `Mlp`.
        schedule: of the chain.
    """

    evidence: torch.Tensor

    def __init__(self, config: MlpConfig, chw: tuple[int, int, int], schedule: NoiseSchedule) -> None:
        super().__init__(config, chw)
        evidence = np.log1p(schedule.alpha_bar) - np.log1p(-schedule.alpha_bar)
        self.register_buffer("evidence", torch.from_numpy(evidence).float(), persistent=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The logits, [N, C, H, W], for x of 0 and 1."""
        own: torch.Tensor = (2.0 * x - 1.0) * self.evidence[t.long()].reshape(-1, 1, 1, 1)
        return own + super().forward(x, t)


class _Layer(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(width, width), torch.nn.Linear(width, width)
        self.of_time = torch.nn.Linear(width, width)

    def forward(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        silu = torch.nn.functional.silu
        update: torch.Tensor = self.outer(silu(self.inner(silu(h)) + self.of_time(embedding)))
        return h + update


@dataclass(frozen=True, eq=False)
class TrainedMlp:
    """A trained network and what it was trained to do.

    Attributes:
        folder: where it was read from.
        config: its architecture.
        process: Gaussian or binomial.
        network: in eval mode, float32.
    """

    folder: Path
    config: MlpConfig
    process: Process | BinomialProcess
    network: Mlp

    def predict(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The prediction for x [N, C, H, W] and t [N], all float32."""
        return predict_with(self.network, x, t)


def predict_with(network: Mlp, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """A network's prediction for NumPy arrays, float32 [N, C, H, W]."""
    with torch.inference_mode():
        prediction: np.ndarray = network(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    return prediction


def make_network(config: MlpConfig, process: Process | BinomialProcess) -> Mlp:
    """A freshly initialized network for this process, drawn from torch's global generator."""
    if isinstance(process, BinomialProcess):
        return BitMlp(config, process.sample.chw, process.schedule)
    return Mlp(config, process.sample.chw)


def check_free(folder: Path, overwrite: bool) -> None:
    """Whether a trained network may be written there.

    Raises:
        InputError: the folder holds another network and `overwrite` was not given, or it holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / DESCRIPTION).is_file():
        raise InputError(f"{folder}: holds something else than a run of this command; choose another place with --out")
    if not overwrite:
        raise InputError(f"{folder}: holds a trained network; replace it with --overwrite, or choose another --out")


def write_mlp(
    folder: Path,
    network: Mlp,
    config: MlpConfig,
    process: Process | BinomialProcess,
    facts: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write the folder, whole or not at all.

    Args:
        folder: where to; see `check_free`.
        network, config, process: what was trained; the process without the hash of the weights.
        facts: what else to put into `mlp.json`.
        overwrite: replace another trained network.

    Raises:
        InputError: as `check_free`, or the folder cannot be written.
    """
    check_free(folder, overwrite)
    weights = safetensors.torch.save({name: value.contiguous() for name, value in network.state_dict().items()})
    process = dataclasses.replace(process, checkpoint_sha256=hashlib.sha256(weights).hexdigest())
    described = {"format": FORMAT, "process": process.to_json(), "network": config.to_json(), **facts}
    with whole_folder(folder) as temporary:
        (temporary / WEIGHTS).write_bytes(weights)
        (temporary / DESCRIPTION).write_text(sealed_text(described), encoding="utf-8")


def read_mlp(folder: Path) -> TrainedMlp:
    """Read such a folder.

    Raises:
        InputError: no such folder, another format, or weights that are not the described ones.
    """
    described = _read_description(folder)
    source = str(folder / DESCRIPTION)
    fields = described.get("process")
    is_binomial = isinstance(fields, Mapping) and fields.get("kind") == BINOMIAL_KIND
    process = (BinomialProcess if is_binomial else Process).from_json(fields, source)
    config = MlpConfig.from_json(described.get("network"), source)
    content = read_regular(folder / WEIGHTS, _MAX_WEIGHTS_BYTES, "train again")
    if hashlib.sha256(content).hexdigest() != process.checkpoint_sha256:
        raise InputError(f"{folder / WEIGHTS}: is not what {DESCRIPTION} describes (its sha256 differs); train again")
    network = make_network(config, process)
    try:
        network.load_state_dict(safetensors.torch.load(content))
    except RuntimeError as error:
        raise InputError(f"{folder / WEIGHTS}: does not fit the network in {DESCRIPTION}; train again") from error
    return TrainedMlp(folder, config, process, network.eval().requires_grad_(False))


def _read_description(folder: Path) -> Mapping[str, Any]:
    train = "train with `python -m train.swiss_roll` or `python -m train.binary`"
    return read_fields(folder / DESCRIPTION, FORMAT, "train again", train, _UNDIGESTED_FORMAT).values
