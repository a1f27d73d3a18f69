"""Sampling as a user waits for it: from the draw of x_T until the images can be read."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.gpu_check.figures import median_ratio, rounds_within
from diffusion.samplers import make_table
from runtime.chain.device import DeviceChain
from runtime.device.interface import DeviceEngine

NUM_STEPS = 50


class ChainSampler:
    """Our chain as a call.

    Args:
        engine: the network.
        batch_size: N.
        num_steps: of the chain.
    """

    def __init__(self, engine: DeviceEngine, batch_size: int, num_steps: int = NUM_STEPS) -> None:
        self.batch_size = batch_size
        # As diffusers chooses timesteps, which end at 0.
        table = make_table(engine.process, num_steps=num_steps, spacing="leading")
        self.chain = DeviceChain(engine, table, batch_size)

    def __call__(self) -> None:
        self.chain.begin([0] * self.batch_size, range(self.batch_size))
        self.chain.run()
        _ = self.chain.x

    def close(self) -> None:
        """Give its memory back."""
        self.chain.close()


def rounds_for(samplers: dict[str, Any], budget_seconds: float, most: int = 15) -> int:
    """Run everything twice, to warm up and to see how long it takes; how many rounds fit into the budget."""
    seconds = 0.0
    for sample in samplers.values():
        sample()
        begin = time.perf_counter()
        sample()
        seconds += time.perf_counter() - begin
    return rounds_within(seconds, budget_seconds, most)


def compare_seconds(
    seconds: dict[str, list[float]], ours: str, batch_size: int, num_steps: int = NUM_STEPS
) -> dict[str, dict[str, float]]:
    """By name: milliseconds a step, images a second, and how many times faster ours is."""
    medians = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    return {
        name: {
            "ms_per_step": 1e3 * medians[name] / num_steps,
            "ms_per_step_min": 1e3 * min(seconds[name]) / num_steps,
            "ms_per_step_max": 1e3 * max(seconds[name]) / num_steps,
            "images_per_second": batch_size / medians[name],
            "ours_is_faster": median_ratio(seconds[name], seconds[ours]),
        }
        for name in seconds
    }


def comparison_lines(results: dict[str, dict[str, float]], batch_size: int) -> list[str]:
    """For the table."""
    return [
        f"{name:48} batch {batch_size:3d} {entry['ms_per_step']:9.4f} ms/step "
        f"{entry['images_per_second']:9.2f} images/s, ours is {entry['ours_is_faster']:.2f}x"
        for name, entry in results.items()
    ]
