"""Annealed Langevin dynamics: sampling with the score alone (Song & Ermon 2019, section 4.3).

At every noise level, from the noisiest down, x takes several steps uphill on ln q(x_t) with noise of its own:

    x ← x + ½ δ ∇ ln q(x_t) + √δ z,    δ = relative_step · (1 − ᾱ_t)

No step is accepted or refused, so for Gaussian data with Var[x_t] = v the state settles at variance v/(1 − δ/4v) rather
than v; it takes a few times v/δ steps to forget the level before.
"""

from __future__ import annotations

import numpy as np

from diffusion.errors import InputError
from diffusion.normal import MAX_REPEATS, draw_number, normal_batch
from diffusion.prediction import from_x_start, to_x_start
from diffusion.process import Process
from diffusion.reference_loop import Predict
from diffusion.spacing import check_timesteps

# Song & Ermon 2019, section 5: ε = 2e-5 at σ_L = 0.01, so that a step's variance is 0.2 of the level's.
RELATIVE_STEP = 0.2


def annealed_langevin(
    process: Process,
    predict: Predict,
    x: np.ndarray,
    timesteps: np.ndarray,
    steps_per_level: int = 100,
    relative_step: float = RELATIVE_STEP,
    denoise: bool = True,
    seed: int = 0,
    start: int = 0,
) -> np.ndarray:
    """Run algorithm 1 of Song & Ermon 2019 over the noise levels of the given timesteps, in float64.

    The paper's state is x_t/√ᾱ_t, data plus noise of variance σ² = (1 − ᾱ_t)/ᾱ_t, and stays as it is from one level to
    the next; so x is rescaled there. Its step α_i = ε σ_i²/σ_L² is δ/ᾱ_t with relative_step = ε/σ_L².

    Args:
        process: of the network; x_start is clipped as it says, unless the bound is None.
        predict: the network, of any prediction type.
        x: [N, C, H, W], the state at the first level, such as `diffusion.reference_loop.initial_noise`.
        timesteps: the levels, strictly descending, ᾱ > 0.
        steps_per_level: 1..256.
        relative_step: δ/(1 − ᾱ_t), in (0, 4): beyond it the steps overshoot.
        denoise: end with E[x_0 | x_t] by Tweedie's formula (Luo 2022, eq. 133), else with x_t/√ᾱ_t, noise and all.
        seed, start: of the noise; x[0] has the sample index `start`. Step k at a timestep takes the draw's repeat k.

    Returns:
        float64 [N, C, H, W], data.

    Raises:
        InputError: a number outside its range, or a level without signal.
    """
    if not 1 <= steps_per_level <= MAX_REPEATS:
        raise InputError(f"steps_per_level is {steps_per_level}, expected 1..{MAX_REPEATS}")
    if not 0.0 < relative_step < 4.0:
        raise InputError(f"relative_step is {relative_step}, expected a number between 0 and 4")
    alpha_bars = process.schedule.alpha_bar
    levels = check_timesteps(np.asarray(timesteps), len(alpha_bars))
    if (alpha_bars[levels] == 0.0).any():
        raise InputError("a timestep has alpha_bar = 0, where x_t says nothing of the data; leave it out")
    x = np.asarray(x, np.float64)
    seeds, indices = [seed] * len(x), range(start, start + len(x))
    alpha_bar = alpha_bars[levels[0]]
    for timestep in levels:
        x = x * np.sqrt(alpha_bars[timestep] / alpha_bar)
        alpha_bar = alpha_bars[timestep]
        step_size = relative_step * (1.0 - alpha_bar)
        for repeat in range(steps_per_level):
            score = from_x_start(predicted_x_start(process, predict, x, int(timestep)), "score", x, alpha_bar)
            z = normal_batch(x.shape[1:], seeds, indices, draw_number(int(timestep), repeat=repeat))
            x = x + 0.5 * step_size * score + np.sqrt(step_size) * z
    if denoise:
        return predicted_x_start(process, predict, x, int(levels[-1]))
    return np.asarray(x / np.sqrt(alpha_bar))


def predicted_x_start(process: Process, predict: Predict, x_t: np.ndarray, timestep: int) -> np.ndarray:
    """E[x_0 | x_t] as the network has it, clipped as the process says: Tweedie's formula (Luo 2022, eq. 133)."""
    prediction = predict(x_t, np.full(len(x_t), timestep, dtype=x_t.dtype))[:, : x_t.shape[1]]
    x_start = to_x_start(prediction, process.prediction_type, x_t, process.schedule.alpha_bar[timestep])
    clip = process.clip_sample
    return x_start if clip is None else np.clip(x_start, -clip, clip)
