"""`--batch-size auto`: the batch that draws the most samples per second here, found by a short measurement."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable

import numpy as np

from commands.program import say
from diffusion.errors import InputError
from runtime.conditions import GivenConditions
from runtime.sampler import Sampler

_SECONDS, _STEPS = 0.5, 3  # for each size, after its first step
_AS_FAST = 0.97  # of the best is as good, in a smaller batch, which loses less to a kill and takes less memory
_MANY = 1 << 16
_MUCH_SLOWER = 0.8  # of the best: no larger batch will be better


class _Enough(Exception):
    """Ends a chain that has been measured."""


def candidate_sizes(usual: int, batch_range: tuple[int, int | None], shard_size: int | None) -> list[int]:
    """The sizes that are tried: powers of two up to four times the usual one; of these, divisors of a shard's size.

    Args:
        usual: what is taken where nothing is said.
        batch_range: of the engine.
        shard_size: that was asked for; None for any.
    """
    smallest, largest = batch_range
    sizes = {1 << power for power in range((4 * usual).bit_length())} | {usual}
    fitting = [size for size in sizes if size >= smallest and (largest is None or size <= largest)]
    whole = [size for size in fitting if shard_size is None or shard_size % size == 0]
    return sorted(whole or fitting) or [smallest]


def fastest_batch(
    sizes: Iterable[int], samples_per_second: Callable[[int], float], tell: Callable[[str], None] = say
) -> int:
    """The smallest of the sizes that is nearly as fast as the fastest.

    Args:
        sizes: ascending.
        samples_per_second: measures one; may raise InputError for a batch that does not fit, which ends the search.
        tell: is told the result.
    """
    rates: dict[int, float] = {}
    for size in sizes:
        try:
            rates[size] = samples_per_second(size)
        except InputError:
            if not rates:
                raise
            break
        if rates[size] < _MUCH_SLOWER * max(rates.values()):
            break
    best = max(rates.values())
    chosen = min(size for size, rate in rates.items() if rate >= _AS_FAST * best)
    measured = ", ".join(f"{size}: {rate:.3g}" for size, rate in rates.items())
    tell(f"--batch-size auto: {chosen} (samples and steps per second: {measured})")
    return chosen


def choose_batch(
    sampler: Sampler, given: GivenConditions, with_states: bool, shard_size: int | None, threads: int
) -> int:
    """The fastest batch for a sampler's engine and table.

    Args:
        sampler: of the run.
        given: conditions of the run.
        with_states: whether the run begins with given states; zeros stand for them.
        shard_size: that was asked for; None for any.
        threads: of the CPU.

    Raises:
        InputError: not even the smallest batch fits.
    """
    usual = sampler.plan(_MANY).batch_size
    sizes = candidate_sizes(usual, sampler.engine.batch_range(), shard_size)

    def samples_per_second(size: int) -> float:
        trial = Sampler(sampler.engine, sampler=sampler.table, batch_size=size, threads=threads, force=True)
        num = size * (1 + _STEPS)  # so many batches, if each has one step
        states = np.zeros((num, *sampler.process.sample.chw), dtype=np.float32) if with_states else None
        ended, moved = [time.perf_counter()], 0

        def after_step(num_moved: int) -> None:
            nonlocal moved
            ended.append(time.perf_counter())
            moved += num_moved if len(ended) > 2 else 0  # the first step compiles
            if len(ended) > 1 + _STEPS and ended[-1] - ended[1] >= _SECONDS:
                raise _Enough

        with contextlib.suppress(_Enough):
            for _ in trial.batches(num, x_init=states, after_step=after_step, given=given):
                pass
        return moved / max(1e-9, ended[-1] - ended[1])

    return fastest_batch(sizes, samples_per_second)
