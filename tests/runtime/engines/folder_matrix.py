"""A matrix of folders: layouts × weights × scheduler classes × β schedules × settings × how much a file says.

Every pair of choices of two axes that can be sampled at all stands in some folder that can; others are drawn at random.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
from diffusers import UNet2DModel

from diffusion.diffusers_schedulers import SCHEDULER_CLASSES
from runtime.engines.checkpoint_weights import INDEX, PICKLE, PICKLE_INDEX, SAFETENSORS

LAYOUTS = ("parts", "flat", "network in root", "scheduler in root")
WEIGHTS = (
    "single", "shards", "pickle", "pickle shards", "variant", "variant shards", "float16", "bfloat16", "old names",
)  # fmt: skip
# What diffusers must be told to read some of them.
TOLD: dict[str, dict[str, Any]] = {
    "pickle shards": {"use_safetensors": False},
    "variant": {"variant": "fp16"},
    "variant shards": {"variant": "fp16"},
}
# DPMSolverSDEScheduler needs a package of its own; of those that describe other processes there are three.
OTHER_PROCESSES = ("EDMEulerScheduler", "IPNDMScheduler", "LCMScheduler")
SCHEDULERS = (*sorted(SCHEDULER_CLASSES.keys() - {"DPMSolverSDEScheduler"}), *OTHER_PROCESSES)
BETAS: dict[str, dict[str, Any]] = {
    "none": {},
    "linear": {"beta_schedule": "linear", "beta_start": 2e-4, "beta_end": 0.03},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.05},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "laplace": {"beta_schedule": "laplace"},
    "exp": {"beta_schedule": "exp"},
    "trained": {"trained_betas": [0.001 * 1.05**t for t in range(60)], "num_train_timesteps": 60},
    "short": {"num_train_timesteps": 25},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "v_prediction": {"prediction_type": "v_prediction"},
    "sample": {"prediction_type": "sample", "clip_sample_range": 2.0},
    "zero snr": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "zero snr of eps": {"rescale_betas_zero_snr": True},
    "fixed_large": {"variance_type": "fixed_large"},
    "fixed_small_log": {"variance_type": "fixed_small_log", "clip_sample": False},
    "fixed_large_log": {"variance_type": "fixed_large_log"},
    "learned": {"variance_type": "learned"},
    "learned_range": {"variance_type": "learned_range"},
    "thresholding": {"thresholding": True},
    "steps_offset": {"steps_offset": 1},
    "not to one": {"set_alpha_to_one": False},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "flow": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "old": {"predict_epsilon": True, "tensor_format": "pt", "timesteps": 1000},
    "old sample": {"predict_epsilon": False},
}
SAYS = ("all", "what differs", "no class")

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "block_out_channels": (8,),
    "down_block_types": ("AttnDownBlock2D",),  # attention's weights have old names
    "up_block_types": ("AttnUpBlock2D",),
    "mid_block_type": None,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@dataclass(frozen=True)
class Case:
    """One folder."""

    layout: str
    weights: str
    scheduler: str
    betas: str
    setting: str
    says: str

    def __str__(self) -> str:
        return "-".join((self.scheduler, self.betas, self.setting, self.layout, self.weights, self.says))

    @property
    def config(self) -> dict[str, Any]:
        """What scheduler_config.json says."""
        return {**BETAS[self.betas], **SETTINGS[self.setting]}


AXES: tuple[tuple[str, ...], ...] = (LAYOUTS, WEIGHTS, SCHEDULERS, tuple(BETAS), tuple(SETTINGS), SAYS)


def all_pairs(allowed: Callable[[Case], bool], seed: int = 0) -> list[Case]:
    """Allowed cases in which every two choices of different axes meet that meet in an allowed case."""
    places = list(itertools.combinations(range(len(AXES)), 2))
    missing = {(a, x, b, y) for a, b in places for x in AXES[a] for y in AXES[b]}
    rng, cases = random.Random(seed), []
    # Sorted first: a set's order is another one in every process.
    for a, x, b, y in sorted(sorted(missing), key=lambda _: rng.random()):
        if (a, x, b, y) not in missing:
            continue
        best: tuple[int, Case] | None = None
        for _ in range(60):
            choice = [rng.choice(axis) for axis in AXES]
            choice[a], choice[b] = x, y
            case = Case(*choice)
            met = sum((i, choice[i], j, choice[j]) in missing for i, j in places)
            if allowed(case) and (best is None or met > best[0]):
                best = met, case
        if best is not None:
            choice = list(astuple(best[1]))
            missing -= {(i, choice[i], j, choice[j]) for i, j in places}
            cases.append(best[1])
    return cases


def at_random(allowed: Callable[[Case], bool], num: int, seed: int = 0) -> list[Case]:
    """That many allowed cases, no two alike."""
    rng, cases = random.Random(seed), dict[Case, None]()
    while len(cases) < num:
        case = Case(*[rng.choice(axis) for axis in AXES])
        if allowed(case):
            cases[case] = None
    return list(cases)


def save_weights(folder: Path, network: UNet2DModel, weights: str) -> None:
    """Write the weights of a network and its config.json."""
    arguments: dict[str, Any] = {
        "shards": {"max_shard_size": "20KB"},
        "pickle": {"safe_serialization": False},
        "pickle shards": {"max_shard_size": "20KB", "safe_serialization": False},
        "variant": {"variant": "fp16"},
        "variant shards": {"variant": "fp16", "max_shard_size": "20KB"},
    }.get(weights, {})
    network.save_pretrained(folder, **arguments)
    path = folder / SAFETENSORS
    if weights in ("float16", "bfloat16"):
        halved = {name: each.to(getattr(torch, weights)) for name, each in safetensors.torch.load_file(path).items()}
        safetensors.torch.save_file(halved, path)
    elif weights == "old names":  # of attention, before diffusers 0.15
        old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
        renamed = {}
        for name, tensor in safetensors.torch.load_file(path).items():
            for new_name, old_name in old.items():
                name = name.replace(new_name, old_name) if ".attentions." in name else name
            renamed[name] = tensor
        safetensors.torch.save_file(renamed, path)
    names = {each.name for each in folder.iterdir()}
    expected = {"shards": INDEX, "pickle": PICKLE, "pickle shards": PICKLE_INDEX}.get(weights)
    assert expected is None or expected in names


def make_folder(folder: Path, case: Case, networks: Path) -> Path:
    """Write the folder of a case; `networks` holds what `save_weights` wrote, by weights and output channels."""
    channels = 2 if case.setting == "learned_range" else 1
    unet = folder if case.layout in ("flat", "network in root") else folder / "unet"
    scheduler = folder if case.layout in ("flat", "scheduler in root") else folder / "scheduler"
    shutil.copytree(networks / f"{case.weights} {channels}", unet, dirs_exist_ok=True)
    scheduler.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"_class_name": case.scheduler, "_diffusers_version": "0.2.0", **case.config}
    if case.says == "no class":
        del config["_class_name"]
        network_config = json.loads((unet / "config.json").read_text())
        del network_config["_class_name"]
        (unet / "config.json").write_text(json.dumps(network_config))
    if case.says == "all":
        with contextlib.suppress(NotImplementedError, ValueError):  # settings that it refuses
            made = getattr(diffusers, case.scheduler).from_config(config)
            config = {**json.loads(made.to_json_string()), **config}
    (scheduler / "scheduler_config.json").write_text(json.dumps(config))
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": "0.2.0",
        "scheduler": ["diffusers", case.scheduler],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
