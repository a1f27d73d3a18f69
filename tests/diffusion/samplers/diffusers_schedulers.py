"""diffusers' schedulers run in float64 with our noise: the independent oracles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch

from diffusion.normal import draw_number, normal_batch
from diffusion.process import Process

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]


class _Float64Module:
    """A module whose float32 is float64: schedulers name float32 in their tables and in their steps."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


def float64_scheduler(kind: type, process: Process, monkeypatch, **config: Any) -> Any:
    """A scheduler of diffusers with our betas, its arithmetic and its tables in float64."""
    module = sys.modules[kind.__module__]
    monkeypatch.setattr(module, "torch", _Float64Module(torch))
    monkeypatch.setattr(module, "np", _Float64Module(np))
    betas = process.schedule.betas
    scheduler = kind(
        num_train_timesteps=len(betas),
        trained_betas=betas.tolist(),
        prediction_type=process.prediction_type,
        **config,
    )
    assert scheduler.alphas_cumprod.dtype == torch.float64
    # Their running product rounds differently from ours in the last place; both are then the same numbers.
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), process.schedule.alpha_bar, rtol=1e-13)
    return scheduler


def noise_of(timestep: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Our z of a timestep for samples 0..N−1, float64."""
    num, *chw = shape
    z = normal_batch(tuple(chw), [seed] * num, list(range(num)), [draw_number(timestep)] * num)
    return torch.from_numpy(z.astype(np.float64))


def scheduler_states(
    scheduler: Any, predict: Predict, x: np.ndarray, seed: int | None = None, **arguments: Any
) -> list[np.ndarray]:
    """The state after every step over the scheduler's own timesteps; noise is ours where a seed is given."""
    state, states = torch.from_numpy(np.asarray(x, dtype=np.float64)), []
    for timestep in scheduler.timesteps:
        t = int(timestep)
        prediction = torch.from_numpy(predict(state.numpy(), np.full(len(x), t)))
        noise = {} if seed is None else {"variance_noise": noise_of(t, x.shape, seed)}
        state = scheduler.step(prediction, timestep, state, **arguments, **noise).prev_sample
        assert state.dtype == torch.float64
        states.append(state.numpy().copy())
    return states


def own_timesteps(scheduler: Any, num_steps: int) -> np.ndarray:
    """The timesteps that the scheduler chooses, after telling it to."""
    scheduler.set_timesteps(num_steps)
    return scheduler.timesteps.numpy().astype(np.int64)
