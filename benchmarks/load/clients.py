"""Clients of a service: a number of them, each of which asks again when it is answered, or requests at random times."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # which the command asks for in one line
    import httpx

SEED = 20_200_619
"""Of all requests; each has an index of its own, so no two ask for the same image."""


@dataclass
class Outcome:
    """One request.

    Attributes:
        number: its sample index.
        steps: of its chain.
        status: of HTTP; 0 where the connection was lost, −1 where the measurement ended before the answer came.
        seconds: from when it was due to its answer; infinite without one.
        pixels: uint8 [H, W] or [H, W, C], of an answer with an image in it.
        preview_s: to the first preview, where one was asked for.
        preview_steps: that were done of the sample then.
    """

    number: int
    steps: int
    status: int = -1
    seconds: float = math.inf
    pixels: np.ndarray | None = None
    preview_s: float | None = None
    preview_steps: int | None = None

    @property
    def digest(self) -> bytes:
        """Of the image."""
        return hashlib.sha256(b"" if self.pixels is None else self.pixels.tobytes()).digest()


class Mixture:
    """What the next request asks for: steps at random, and of some of them previews.

    Args:
        steps: to choose from.
        previews: part of the requests that are watched.
        rng: chooses.
    """

    def __init__(self, steps: Sequence[int], previews: float, rng: np.random.Generator) -> None:
        self._steps, self._previews, self._rng, self._number = tuple(steps), previews, rng, 0

    def next(self) -> tuple[Outcome, bool]:
        """A new request, and whether it is watched."""
        outcome = Outcome(self._number, int(self._rng.choice(self._steps)))
        self._number += 1
        return outcome, bool(self._rng.random() < self._previews)


async def closed_loop(url: str, clients: int, seconds: float, mixture: Mixture, grace_s: float) -> list[Outcome]:
    """So many clients, each of which sends its next request when the last one is answered, for some time.

    Args:
        url: of the service.
        clients: at once.
        seconds: in which requests begin.
        mixture: of the requests.
        grace_s: after that, for the answers that are still to come; then the rest is given up.
    """
    outcomes: list[Outcome] = []
    end = time.perf_counter() + seconds
    async with _client(url, clients) as http:

        async def one() -> None:
            while time.perf_counter() < end:
                outcome, is_watched = mixture.next()
                outcomes.append(outcome)
                await _ask(http, outcome, is_watched, time.perf_counter())

        await _give_up(seconds + grace_s, [asyncio.create_task(one()) for _ in range(clients)])
    return outcomes


async def open_loop(
    url: str, clients: int, rate: float, seconds: float, mixture: Mixture, rng: np.random.Generator, grace_s: float
) -> list[Outcome]:
    """Requests at random times (Poisson), whether the ones before are answered or not, for some time.

    Args:
        url: of the service.
        clients: connections at most; a request that finds none waits, which counts.
        rate: requests a second.
        seconds: of arrivals.
        mixture: of the requests.
        rng: of the times.
        grace_s: after the last arrival, for the answers that are still to come; then the rest is given up.
    """
    outcomes: list[Outcome] = []
    async with _client(url, clients) as http:
        tasks = []
        begin = time.perf_counter()
        for due in _poisson_times(rate, seconds, rng):
            await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
            outcome, is_watched = mixture.next()
            outcomes.append(outcome)
            tasks.append(asyncio.create_task(_ask(http, outcome, is_watched, begin + due)))
        await _give_up(grace_s, tasks)
    return outcomes


async def _give_up(after_s: float, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for all of them, but not for long."""
    if not tasks:
        return
    done, pending = await asyncio.wait(tasks, timeout=after_s)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()  # a bug of the client is not a lost request


def _poisson_times(rate: float, seconds: float, rng: np.random.Generator) -> Iterator[float]:
    due = rng.exponential(1 / rate)
    while due < seconds:
        yield due
        due += rng.exponential(1 / rate)


def _client(url: str, clients: int) -> httpx.AsyncClient:
    import httpx

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    return httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False)


async def _ask(http: httpx.AsyncClient, outcome: Outcome, is_watched: bool, due: float) -> None:
    import httpx

    body: dict[str, Any] = {"seed": SEED, "start": outcome.number, "steps": outcome.steps}
    try:
        if is_watched:
            await _watch(http, outcome, body, due)
        else:
            answer = await http.post("/v1/images", json=body, headers={"Accept": "image/png"})
            outcome.status = answer.status_code
            if answer.status_code == 200:
                outcome.pixels = _pixels(answer.content)
    except httpx.HTTPError:
        outcome.status = 0
    if outcome.pixels is not None:
        outcome.seconds = time.perf_counter() - due


async def _watch(http: httpx.AsyncClient, outcome: Outcome, body: dict[str, Any], due: float) -> None:
    headers = {"Accept": "text/event-stream"}
    async with http.stream("POST", "/v1/images", json=body | {"preview_every": 5}, headers=headers) as answer:
        outcome.status = answer.status_code
        name = ""
        async for line in answer.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data" and name == "progress" and outcome.preview_s is None:
                if previews := json.loads(value)["previews"]:
                    outcome.preview_s = time.perf_counter() - due
                    outcome.preview_steps = previews[0]["steps_done"]
            elif field == "data" and name == "images":
                outcome.pixels = _pixels(base64.b64decode(json.loads(value)["images"][0]))
            elif field == "data" and name == "error":
                outcome.status = json.loads(value)["status"]
    if outcome.status == 200 and outcome.pixels is None:
        outcome.status = 0


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image)
