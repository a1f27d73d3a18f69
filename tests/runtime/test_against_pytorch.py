"""Same weights, same noise: the chain against Algorithm 2 in PyTorch float64, and against diffusers' own loop."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.normal import draw_number, normal_batch
from diffusion.reference_loop import initial_noise
from diffusion.samplers import make_table
from export import ExportRequest, export_onnx
from runtime import Sampler
from runtime.engines.torch_checkpoint import Network, load_checkpoint
from tests.checkpoints import LEAST, save_tiny_checkpoint
from tests.diffusers_loop import diffusers_loop

NUM, SEED, START = 3, 11, 40


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """8×8, one level with attention, run over all 1,000 timesteps."""
    one_level = LEAST | {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}
    return made(tmp_path_factory.mktemp("small"), channels=1, size=8, unet=one_level)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """32×32 in color, with attention and a learned variance, run in 50 steps."""
    return made(tmp_path_factory.mktemp("larger"), channels=3, size=32, variance_type="learned_range")


def made(folder, **arguments):
    checkpoint = save_tiny_checkpoint(folder / "checkpoint", **arguments)
    export_onnx(ExportRequest(folder / "unet.onnx", checkpoint))
    return folder


def algorithm_2(checkpoint, timesteps: np.ndarray) -> np.ndarray:
    """Algorithm 2 of Ho et al. 2020 written out in PyTorch, float64 throughout; x_start is clipped to [−1, 1]."""
    process, unet = checkpoint.process, Network(checkpoint.unet.double())
    alpha_bar = torch.cumprod(1 - torch.from_numpy(process.schedule.betas.copy()), 0)
    shape = process.sample.chw
    indices = list(range(START, START + NUM))
    x = torch.from_numpy(initial_noise((NUM, *shape), SEED, START)).double()
    for place, t in enumerate(timesteps):
        with torch.inference_mode():
            prediction = unet(x, torch.full((NUM,), float(t), dtype=torch.float64))
        eps, w = prediction[:, : shape[0]], prediction[:, shape[0] :]
        ab = alpha_bar[t]
        ab_prev = alpha_bar[timesteps[place + 1]] if place + 1 < len(timesteps) else torch.tensor(1.0).double()
        alpha = ab / ab_prev
        x_start = ((x - torch.sqrt(1 - ab) * eps) / torch.sqrt(ab)).clamp(-1, 1)
        x = (torch.sqrt(ab_prev) * (1 - alpha) * x_start + torch.sqrt(alpha) * (1 - ab_prev) * x) / (1 - ab)
        if place + 1 < len(timesteps):
            z = normal_batch(shape, [SEED] * NUM, indices, [draw_number(int(t))] * NUM)
            beta, beta_tilde = 1 - alpha, (1 - alpha) * (1 - ab_prev) / (1 - ab)
            if process.variance_type == "learned_range":
                f = (w + 1) / 2
                std = torch.exp(0.5 * (f * torch.log(beta) + (1 - f) * torch.log(beta_tilde)))
            else:
                std = torch.sqrt(beta)
            x = x + std * torch.from_numpy(z).double()
    return x.numpy()


@functools.cache
def algorithm_2_of(folder: Path, num_steps: int | None) -> np.ndarray:
    checkpoint = load_checkpoint(folder / "checkpoint")
    return algorithm_2(checkpoint, make_table(checkpoint.process, num_steps=num_steps).timesteps)


def chain(engine_path, num_steps: int | None) -> np.ndarray:
    return Sampler(engine_path, num_steps=num_steps, threads=1).sample_float32(NUM, SEED, START)


@pytest.mark.parametrize("engine", ["unet.onnx", "checkpoint"])
@pytest.mark.parametrize(("network", "num_steps"), [("small", None), ("larger", 50)])
def test_x_0_equals_algorithm_2_in_float64(request, network, num_steps, engine):
    folder = request.getfixturevalue(network)
    reference = algorithm_2_of(folder, num_steps)
    assert np.abs(reference).max() > 0.1
    difference = np.abs(chain(folder / engine, num_steps) - reference).max()
    assert difference < 1e-4, difference


@pytest.mark.parametrize(("network", "num_steps"), [("small", None), ("larger", 50)])
def test_x_0_equals_the_loop_of_diffusers(request, network, num_steps, monkeypatch):
    folder = request.getfixturevalue(network)
    checkpoint = load_checkpoint(folder / "checkpoint")
    process, unet = checkpoint.process, Network(checkpoint.unet)
    # Leading spacing ends at timestep 0, after which diffusers adds no noise either.
    table = make_table(process, num_steps=num_steps, spacing="leading")

    def predict(state: torch.Tensor, timestep: int) -> torch.Tensor:
        with torch.inference_mode():
            return unet(state, torch.full((NUM,), float(timestep)))

    x = initial_noise((NUM, *process.sample.chw), SEED, START)
    theirs = diffusers_loop(process, table.timesteps, predict, x, SEED, START, monkeypatch, float64_tables=False)
    sampler = Sampler(folder / "unet.onnx", num_steps=num_steps, spacing="leading", threads=1)
    ours = sampler.sample_float32(NUM, SEED, START)
    np.testing.assert_array_less(np.abs(ours - theirs), 1e-4 * np.maximum(1, np.abs(theirs)))
