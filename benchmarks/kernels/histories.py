"""What histories cost: the step of multistep samplers against that of one-step samplers with as much noise."""

from __future__ import annotations

from typing import Any

from benchmarks.alternating import medians_ms, time_alternately
from benchmarks.kernels.step import Step
from diffusion.samplers import SAMPLERS
from runtime.kernels_module import import_kernels

BYTES_PER_ELEMENT = (12, 20, 28)
"""By the number of histories, float32: x and each history read and written, the prediction read."""

# Noise is the larger part of a step's arithmetic, so each sampler is compared with one that draws as much of it.
_WITH_NOISE, _WITHOUT_NOISE = "ddpm", "ddim"


def measure_histories(shape: tuple[int, int, int, int], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Time the step of every sampler by turns, with the fastest instruction set.

    Args:
        shape: (N, C, H, W).
        threads: of the step.
        rounds: measurements of each.

    Returns:
        One entry for each sampler: `ratio`, its time over that of `against`, a sampler without histories, which takes
        `bytes_ratio` times fewer bytes.
    """
    isa = import_kernels().isa_levels()[-1]
    steps = {sampler: Step(shape, sampler) for sampler in SAMPLERS}
    calls = {sampler: step.compiled(isa, threads) for sampler, step in steps.items()}
    milliseconds = medians_ms(time_alternately(calls, rounds))
    entries = []
    for sampler, step in steps.items():
        histories = len(step.histories)
        against = _WITH_NOISE if step.adds_noise else _WITHOUT_NOISE
        ms, num_bytes = milliseconds[sampler], step.x.size * BYTES_PER_ELEMENT[histories]
        entries.append(
            {
                "sampler": sampler,
                "histories": histories,
                "noise": step.adds_noise,
                "isa": isa,
                "threads": threads,
                "median_ms": ms,
                "gb_per_s": num_bytes / ms / 1e6,
                "against": against,
                "ratio": ms / milliseconds[against],
                "bytes_ratio": BYTES_PER_ELEMENT[histories] / BYTES_PER_ELEMENT[0],
            }
        )
    return entries
