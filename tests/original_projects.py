"""The code of the projects whose checkpoints we read: the oracle for our readers. `make build` installs it."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(sys.prefix) / "original_projects"


def original(module: str) -> ModuleType:
    """Import a module of another project, such as `guided_diffusion.unet`, from its own folder."""
    if not FOLDER.is_dir():
        pytest.fail(f"{FOLDER}: the original projects are not installed; run `make build`")
    sys.path.append(str(FOLDER))  # last: nothing of ours, and no library, may come from there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an old use of torch
            return importlib.import_module(module)
    finally:
        sys.path.remove(str(FOLDER))


def randomize(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fill a network with random weights, the layers that projects start at zero among them; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(noise / fan_in**0.5 if parameter.ndim > 1 else 0.5 + 0.3 * noise)
    return network.eval().requires_grad_(False)
