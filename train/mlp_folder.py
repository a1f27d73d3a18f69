"""The folder of a trained small network: `mlp.safetensors`, and `mlp.json` that says what it is.

diffusers has no pipeline for such networks; this folder is read by `export.mlp_to_onnx`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from commands.whole_files import whole_folder
from diffusion.binomial_process import BINOMIAL_KIND, BinomialProcess
from diffusion.errors import InputError
from diffusion.json_text import read_json
from diffusion.process import Process
from train.mlp import BitMlp, Mlp, MlpConfig

FORMAT = 1
DESCRIPTION, WEIGHTS = "mlp.json", "mlp.safetensors"


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
        InputError: there is another one and `overwrite` was not given, or anything else.
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
        (temporary / DESCRIPTION).write_text(json.dumps(described, indent=1, allow_nan=False) + "\n", encoding="utf-8")


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
    try:
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise InputError(f"{folder / WEIGHTS}: cannot be read ({error.strerror}); train again") from error
    if hashlib.sha256(content).hexdigest() != process.checkpoint_sha256:
        raise InputError(f"{folder / WEIGHTS}: is not what {DESCRIPTION} describes (its sha256 differs); train again")
    network = make_network(config, process)
    try:
        network.load_state_dict(safetensors.torch.load(content))
    except RuntimeError as error:
        raise InputError(f"{folder / WEIGHTS}: does not fit the network in {DESCRIPTION}; train again") from error
    return TrainedMlp(folder, config, process, network.eval().requires_grad_(False))


def _read_description(folder: Path) -> Mapping[str, Any]:
    path = folder / DESCRIPTION
    described = read_json(path, "train again", "train with `python -m train.swiss_roll` or `python -m train.binary`")
    if not isinstance(described, Mapping) or described.get("format") != FORMAT:
        raise InputError(f"{path}: format is not {FORMAT}, the one this version reads; train again")
    return described
