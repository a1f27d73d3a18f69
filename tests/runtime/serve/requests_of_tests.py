"""Small networks and requests for the tests of the service."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.sampler import Sampler
from runtime.serve.image_request import ImageRequest, RequestTables
from runtime.serve.slots import Slots
from runtime.serve.ticket import Ticket

SHAPE = SampleShape(1, 3, 4)


def a_process(**changes: Any) -> Process:
    schedule = NoiseSchedule.make("linear", 40)
    return Process(**({"sample": SHAPE, "schedule": schedule, "variance_type": "fixed_large"} | changes))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ticket_of(process: Process, tables: RequestTables, now: float = 0.0, **fields: Any) -> Ticket:
    """A request that was taken."""
    request = ImageRequest(**fields)
    x = np.full((request.num, *process.sample.chw), np.nan, np.float32)
    return Ticket(request, tables.table(request), x, now, given=request.given(process))


def expected_x(engine: Any, request: ImageRequest, batch_size: int) -> np.ndarray:
    """What `runtime.sample` makes of a request: float32 [num, C, H, W]."""
    sampler = Sampler(
        engine,
        sampler=request.sampler,
        num_steps=request.steps,
        spacing=request.spacing,
        timesteps=request.timesteps,
        eta=request.eta,
        batch_size=batch_size,
        threads=1,
    )
    return sampler.sample_float32(
        request.num, request.seed, request.start, classes=request.classes, guidance=request.guidance
    )


def run_to_end(slots: Slots) -> None:
    """Tick until nothing is left."""
    for _ in range(100_000):
        if not slots.tick():
            return
    raise AssertionError("the slots do not come to an end")
