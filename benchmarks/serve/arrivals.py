"""Requests that come at random times, and how long each takes: on this machine's clock, or on one that counts rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.engines.interface import Engine
from runtime.serve.image_request import ImageRequest, RequestTables
from runtime.serve.slots import Slots
from runtime.serve.ticket import State, Ticket


class Clock(Protocol):
    """Seconds, or rows."""

    def __call__(self) -> float:
        """Now."""

    def wait_until(self, when: float) -> None:
        """Let time pass."""


class WallClock:
    """Seconds of this machine."""

    def __call__(self) -> float:
        """Now."""
        return time.monotonic()

    def wait_until(self, when: float) -> None:
        """Sleep."""
        time.sleep(max(0.0, when - self()))


class RowClock:
    """Time that passes with the rows of an `InstantEngine`, one unit each: what a machine has, whose network calls all
    take equally long and whose scheduler takes no time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now

    def wait_until(self, when: float) -> None:
        """Jump."""
        self.now = max(self.now, when)


class InstantEngine(Engine):
    """A network of one pixel that predicts nothing, and moves a clock."""

    name, sha256, precision = "rows on a clock", "0" * 64, "fp32"

    def __init__(self, clock: RowClock, num_train_timesteps: int = 100) -> None:
        schedule = NoiseSchedule.make("linear", num_train_timesteps)
        self.process = Process(SampleShape(1, 1, 1), schedule)
        self._clock = clock

    def _bind(
        self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray, *conditions: np.ndarray
    ) -> Callable[[], None]:
        def call() -> None:
            self._clock.now += 1.0

        return call


def poisson_arrivals(
    num: int, rate: float, steps: Sequence[int], rng: np.random.Generator
) -> list[tuple[float, ImageRequest]]:
    """So many requests of one sample, each with one of the numbers of steps, at a rate per unit of the clock."""
    times = np.cumsum(rng.exponential(1.0, num)) / rate
    chosen = rng.choice(np.array(steps), num)
    return [
        (float(when), ImageRequest(seed=seed, steps=int(each), sampler="ddim"))
        for seed, (when, each) in enumerate(zip(times, chosen, strict=True))
    ]


def latencies(slots: Slots, engine: Engine, arrivals: Sequence[tuple[float, ImageRequest]], clock: Clock) -> np.ndarray:
    """From when each request came to when its image was done, float64 [n], in units of the clock.

    Raises:
        RuntimeError: a request was lost.
    """
    tables = RequestTables(engine.process, engine.precision)
    begin, tickets, waiting = clock(), [], list(reversed(arrivals))
    is_busy = False
    while waiting or is_busy:
        if not is_busy:
            clock.wait_until(begin + waiting[-1][0])
        while waiting and begin + waiting[-1][0] <= clock():
            when, request = waiting.pop()
            x = np.empty((request.num, *engine.process.sample.chw), np.float32)
            ticket = Ticket(request, tables.table(request), x, begin + when, given=request.given(engine.process))
            slots.add(ticket)
            tickets.append(ticket)
        is_busy = slots.tick()
    ended = [ticket.ended_at for ticket in tickets if ticket.state is State.DONE and ticket.ended_at is not None]
    if len(ended) != len(arrivals):
        raise RuntimeError(f"{len(arrivals) - len(ended)} of {len(arrivals)} requests were lost")
    return np.array([end - ticket.taken_at for end, ticket in zip(ended, tickets, strict=True)])
