"""Draws what is missing of a run into its folder. What is finished is kept, whatever ends the run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from commands.errors import StoppedError
from commands.program import say
from commands.progress import progress_bar
from commands.system import seconds_since_process_start
from diffusion.errors import InputError
from runtime.conditions import GivenConditions
from runtime.runs.files import SampleWriter
from runtime.runs.folder import RunFolder, samples_done
from runtime.sampler import Sampler
from runtime.trajectory import Trajectory


@dataclass(frozen=True)
class RunTiming:
    """How long a run took, as its report says it.

    Attributes:
        first_step_seconds: from the start of the process to the end of the first step; 0 where nothing was drawn.
        ms_per_step: as `StepClock`.
    """

    seconds: float
    images_per_second: float
    ms_per_step: float
    first_step_seconds: float


def draw_run(
    sampler: Sampler,
    folder: RunFolder,
    writer: SampleWriter,
    num: int,
    seed: int,
    start: int,
    x_init: np.ndarray | None = None,
    trajectory: Trajectory | None = None,
    given: GivenConditions | None = None,
) -> RunTiming:
    """Draw the samples of a run that are not done yet.

    Args:
        sampler: draws them.
        folder: of the run; every batch is recorded there.
        writer: takes them.
        num, seed, start, x_init, trajectory, given: of the whole run, as `Sampler.batches`.

    Raises:
        StoppedError: Ctrl-C; what is finished is kept.
        InputError: as `Sampler.batches`, or something cannot be written; the error says what is kept.
    """
    done_before, left = folder.done, num - folder.done
    first_step_seconds, on_device = 0.0, False
    clock = StepClock(len(sampler.table))
    began = time.perf_counter()

    def after_step(samples_moved: int) -> None:
        nonlocal first_step_seconds
        if not clock.steps:
            first_step_seconds = seconds_since_process_start()
        clock.step()
        bar.update()

    if left:
        plan = sampler.plan(left, trajectory is not None)
        on_device = bool(plan.summary)
        if plan.summary:
            say(f"on the GPU: {plan.summary}")
        states = None if x_init is None else x_init[done_before:]
        num_steps = -(-left // plan.batch_size) * len(sampler.table)
        with progress_bar(num_steps, "sampling", unit="step") as bar:
            try:
                with kept_on_error(folder, num):
                    begin = start + done_before
                    for batch in sampler.batches(left, seed, begin, states, after_step, trajectory, given):
                        writer.add(batch)
                        folder.record(len(batch.x) + len(batch.non_finite), batch.non_finite)
                        rate = (folder.done - done_before) / (time.perf_counter() - began)
                        bar.set_postfix_str(f"{rate:.3g} images/s", refresh=False)
            except KeyboardInterrupt:
                # Asked of the folder: the interrupt may have come between its manifest and our memory of it.
                raise StoppedError(
                    f"interrupted; {samples_done(folder.path)} of {num} samples are kept in {folder.path}: "
                    "the same command with --resume goes on"
                ) from None
    seconds = time.perf_counter() - began
    # On a GPU steps are reported in chunks, and the graph is made before the first.
    ms_per_step = 1e3 * seconds / max(1, clock.steps) if on_device else clock.ms_per_step(seconds)
    return RunTiming(seconds, left / seconds, ms_per_step, first_step_seconds)


@contextlib.contextmanager
def kept_on_error(folder: RunFolder, num: int) -> Iterator[None]:
    """Say of an error, such as a full disk, what it does not cost."""
    try:
        yield
    except InputError as error:
        if not folder.done:
            raise
        raise InputError(
            f"{error}; {folder.done} of {num} samples are kept in {folder.path}, and --resume goes on"
        ) from error


class StepClock:
    """Times the steps of batch after batch.

    The first step of every batch is left out: the libraries compile a network at its first call, and again at the first
    call of another batch size. Between two batches results are written, which is no step either.

    Args:
        steps_per_batch: of the chain.
        now: the time in seconds.

    Attributes:
        steps: that were seen.
    """

    def __init__(self, steps_per_batch: int, now: Callable[[], float] = time.perf_counter) -> None:
        self._steps_per_batch, self._now = steps_per_batch, now
        self._seconds, self._timed, self._last = 0.0, 0, now()
        self.steps = 0

    def step(self) -> None:
        """A step has ended."""
        now = self._now()
        if self.steps % self._steps_per_batch:
            self._seconds += now - self._last
            self._timed += 1
        self.steps += 1
        self._last = now

    def ms_per_step(self, seconds: float) -> float:
        """The mean; where no step but first ones was seen, that of `seconds` over all of them."""
        return 1e3 * self._seconds / self._timed if self._timed else 1e3 * seconds / max(1, self.steps)
