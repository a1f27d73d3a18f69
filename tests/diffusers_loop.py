"""diffusers' own DDPMScheduler loop, fed with our noise: the independent oracle for Algorithm 2."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from diffusion.diffusers_config import process_to_diffusers
from diffusion.normal import draw_number, normal_batch
from diffusion.process import Process


def diffusers_loop(
    process: Process,
    timesteps: np.ndarray,
    predict: Callable[[torch.Tensor, int], torch.Tensor],
    x: np.ndarray,
    seed: int,
    start: int,
    monkeypatch,
    float64_tables: bool = True,
) -> np.ndarray:
    """x_0 of diffusers' loop over `timesteps`; `predict` maps (x [N, C, H, W], timestep) to the prediction.

    With `float64_tables` its float32 α and ᾱ are replaced by ours, which leaves its formulas alone to differ.
    """
    scheduler = DDPMScheduler(**process_to_diffusers(process))
    if float64_tables:
        scheduler.betas = torch.from_numpy(process.schedule.betas.copy())
        scheduler.alphas = torch.from_numpy(process.schedule.alphas.copy())
        scheduler.alphas_cumprod = torch.from_numpy(process.schedule.alpha_bar.copy())
        scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(timesteps=[int(timestep) for timestep in timesteps])
    state = torch.from_numpy(x)
    num = len(x)
    for timestep in timesteps:
        draw = draw_number(int(timestep))
        z = normal_batch(x.shape[1:], [seed] * num, list(range(start, start + num)), [draw] * num)
        noise = torch.from_numpy(z).to(state.dtype)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, noise=noise, **__: noise)
        state = scheduler.step(predict(state, int(timestep)), int(timestep), state).prev_sample
    return state.numpy()
