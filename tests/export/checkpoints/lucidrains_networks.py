"""Networks and files of denoising-diffusion-pytorch, made by its own code with random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tests.original_projects import original, randomize

STUBBED = ("torchvision", "torchvision.transforms", "torchvision.utils")


def project() -> ModuleType:
    """The package. It imports torchvision, for data sets alone, which must not be installed here."""
    stubs = {name: ModuleType(name) for name in STUBBED}
    stubs["torchvision"].__dict__.update(transforms=stubs[STUBBED[1]], utils=stubs[STUBBED[2]])
    sys.modules.update(stubs)
    try:
        original("einops.layers.torch")
        original("ema_pytorch")
        return original("denoising_diffusion_pytorch")
    finally:
        for name in STUBBED:
            del sys.modules[name]


def make_diffusion(seed: int = 0, size: int = 16, learned: bool = False, **arguments: Any) -> Any:
    """A GaussianDiffusion, or a LearnedGaussianDiffusion; arguments of its Unet have `unet_` before their names."""
    package = project()
    unet = {name.removeprefix("unet_"): value for name, value in arguments.items() if name.startswith("unet_")}
    others = {name: value for name, value in arguments.items() if not name.startswith("unet_")}
    network = package.Unet(**{"dim": 16, "dim_mults": (1, 2), "learned_variance": learned, **unet})
    kind = package.LearnedGaussianDiffusion if learned else package.GaussianDiffusion
    diffusion = kind(network, image_size=size, **others)
    randomize(network, seed)
    return diffusion


def save_as_trainer(path: Path, diffusion: Any, average: Any, initted: bool = True) -> Path:
    """Write model-N.pt as the project's Trainer does; `average` is what EMA has made of the network."""
    ema = original("ema_pytorch").EMA(diffusion, beta=0.995, update_every=10)
    ema.ema_model.load_state_dict(average.state_dict())
    ema.initted.fill_(initted)
    optimizer = torch.optim.Adam(diffusion.parameters())
    content = {
        "step": 7000,
        "model": diffusion.state_dict(),
        "opt": optimizer.state_dict(),
        "ema": ema.state_dict(),
        "scaler": None,
        "version": "2.3.4",
    }
    torch.save(content, path)
    return path
