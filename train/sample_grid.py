"""A grid of samples, to see with one look what a network has learned: Algorithm 2 (Ho et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffusion.process import Process
from train.draws import Draws

# The grid's longer side is scaled up to about this.
_GRID_PIXELS = 800


def sample(
    network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    process: Process,
    num: int,
    seed: int,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    on_step: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """`num` samples of an epsilon network with fixed variance, float32 [num, C, H, W], about in [−1, 1].

    Args:
        network: from x_t [N, C, H, W] and timesteps [N] to eps.
        process: schedule, variance and clip.
        num: samples.
        seed: of the noise.
        device: where the network is.
        batch_size: samples per call of the network.
        on_step: called after every step of every batch; may raise to stop.
    """
    draws = Draws(seed)
    x = torch.from_numpy(draws.sampling_noise(0, (num, *process.sample.chw))).to(device)
    for t, x_start_scale, x_start_weight, x_weight, noise_std in _posterior_rows(process):
        noise = torch.from_numpy(draws.sampling_noise(t + 1, tuple(x.shape))).to(device) if t else None
        for first in range(0, num, batch_size):
            x_t = x[first : first + batch_size]
            with torch.no_grad():
                eps = network(x_t, torch.full((len(x_t),), t, device=device))
            x_start = x_start_scale[0] * x_t - x_start_scale[1] * eps  # Ho et al. 2020, eq. 15
            if process.clip_sample is not None:
                x_start = x_start.clamp(-process.clip_sample, process.clip_sample)
            x_prev = x_start_weight * x_start + x_weight * x_t  # Ho et al. 2020, eq. 7
            if noise is not None:
                x_prev += noise_std * noise[first : first + batch_size]
            x[first : first + batch_size] = x_prev
            on_step()
    return np.asarray(x.cpu().numpy())


def _posterior_rows(process: Process) -> Iterator[tuple[int, tuple[float, float], float, float, float]]:
    schedule = process.schedule
    alpha_bar, alpha_bar_prev, betas = schedule.alpha_bar, schedule.alpha_bar_prev, schedule.betas
    variance = betas if process.variance_type == "fixed_large" else schedule.posterior_variance
    for t in reversed(range(schedule.num_train_timesteps)):
        left = 1.0 - alpha_bar[t]
        yield (
            t,
            (float(alpha_bar[t] ** -0.5), float(math.sqrt(left / alpha_bar[t]))),
            float(math.sqrt(alpha_bar_prev[t]) * betas[t] / left),
            float(math.sqrt(schedule.alphas[t]) * (1.0 - alpha_bar_prev[t]) / left),
            float(math.sqrt(variance[t])),
        )


def draw_grid(x: np.ndarray) -> Any:
    """Samples [N, C, H, W] in [−1, 1] as one PIL image: near-square, a line between samples, scaled up if small."""
    num, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    pixels = np.rint(255.0 * np.clip(x / 2.0 + 0.5, 0.0, 1.0)).astype(np.uint8)  # [N, C, H, W]
    grid = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 64, dtype=np.uint8)
    for index in range(num):
        top, left = (index // columns) * (height + 1) + 1, (index % columns) * (width + 1) + 1
        grid[top : top + height, left : left + width] = pixels[index].transpose(1, 2, 0)
    image = Image.fromarray(grid[..., 0] if channels == 1 else grid)
    scale = max(1, _GRID_PIXELS // max(image.size))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
