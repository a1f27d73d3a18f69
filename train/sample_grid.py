"""A grid of samples, to see with one look what a network has learned: Algorithm 2 (Ho et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from diffusion.process import Process
from diffusion.samplers import make_table
from diffusion.step_table import COLUMNS
from train.draws import Draws


def sample(
    network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    process: Process,
    num: int,
    seed: int,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    on_step: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """`num` samples by Algorithm 2 over all timesteps, float32 [num, C, H, W], about in [−1, 1].

    The rows are those of `diffusion.samplers.ddpm`, so every prediction and variance type takes the same path.

    Args:
        network: from x_t [N, C, H, W] and timesteps [N] to the prediction, [N, C or 2C, H, W].
        process: schedule, prediction, variance and clip.
        num: samples.
        seed: of the noise.
        device: where the network is.
        batch_size: samples per call of the network.
        on_step: called after every step of every batch; may raise to stop.
    """
    table = make_table(process)
    channels, draws = process.sample.channels, Draws(seed)
    x = torch.from_numpy(draws.sampling_noise(0, (num, *process.sample.chw))).to(device)
    for t, coefficients in zip(table.timesteps.tolist(), table.cast().tolist(), strict=True):
        row = dict(zip(COLUMNS, coefficients, strict=True))
        noise = torch.from_numpy(draws.sampling_noise(t + 1, tuple(x.shape))).to(device) if row["s"] else None
        for first in range(0, num, batch_size):
            x_t = x[first : first + batch_size]
            with torch.no_grad():
                prediction = network(x_t, torch.full((len(x_t),), t, device=device)).float()
            p, w = prediction[:, :channels], prediction[:, channels:]
            x_start = (row["u"] * x_t + row["v"] * p).clamp(-table.clip, table.clip)
            x_prev = row["a"] * x_t + row["q"] * p + row["b"] * x_start
            if noise is not None:
                noise_std = row["s"] * torch.exp(row["k"] * w) if table.learned else row["s"]
                x_prev += noise_std * noise[first : first + batch_size]
            x[first : first + batch_size] = x_prev
            on_step()
    return np.asarray(x.cpu().numpy())
