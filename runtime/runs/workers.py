"""Shards drawn by processes of this machine: the parent hands them out, one at a time, and again if a worker dies.

Parent and worker talk through a pipe. The parent sends an `Order`, or None to end; a worker sends `Ready`, then `Moved`
now and then, and `Drawn` or `Failed`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import NoReturn, Protocol

from commands.errors import DeviceUnavailableError, StoppedError, VerificationError
from commands.program import say
from commands.signals import nothing_ends
from diffusion.errors import InputError
from runtime.formats.shard_record import ShardRecord
from runtime.runs.shard_folder import ShardFolder
from runtime.runs.shard_progress import RunProgress
from runtime.runs.shard_run import kept_in
from runtime.runs.shards import Shard

MOST_DEATHS = 3  # of workers with the same shard; then it is the shard, or the machine, and no accident
_SECONDS_TO_END = 10.0


@dataclass(frozen=True)
class Order:
    """Draw a shard.

    Attributes:
        shard: of the plan.
        again: whether a worker died that had it; what that one finished is taken.
    """

    shard: Shard
    again: bool


@dataclass(frozen=True)
class Ready:
    """The worker has opened its engine."""


@dataclass(frozen=True)
class Moved:
    """So many samples went a step further since the last message, so many images were done, and what time it took."""

    samples: int
    images: int
    in_steps: float
    seconds: float


@dataclass(frozen=True)
class Drawn:
    """The shard is in the folder."""

    record: ShardRecord


@dataclass(frozen=True)
class Failed:
    """An error, by the name of its class; `bug` is the traceback of what no user can mend."""

    kind: str
    message: str
    bug: str = ""


_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (InputError, VerificationError, DeviceUnavailableError)
}


class StartsWorker(Protocol):
    """Starts worker number `place`; the connection is the parent's end, and the worker alone holds the other."""

    def __call__(self, place: int) -> tuple[SpawnProcess, Connection]:
        """Returns at once."""


class _Worker:
    def __init__(self, start: StartsWorker, place: int) -> None:
        self.place = place
        self.shard: Shard | None = None
        self.ready = False
        try:
            # It ignores what a terminal sends to all of its processes: its parent decides.
            with nothing_ends():
                self.process, self.connection = start(place)
        except OSError as error:  # too many processes, or open files
            raise InputError(
                f"worker {place} cannot be started ({error.strerror or error}); give fewer --workers"
            ) from error

    def send(self, order: Order | None) -> None:
        self.shard = None if order is None else order.shard
        with contextlib.suppress(OSError):  # it is dead: that is seen when it is read
            self.connection.send(order)


def draw_with_workers(
    start: StartsWorker, count: int, folder: ShardFolder, shards: Sequence[Shard], progress: RunProgress
) -> list[ShardRecord]:
    """Draw shards by processes that end with this one.

    Args:
        start: starts a worker.
        count: of workers; no more are started than there are shards.
        folder: claimed.
        shards: that are not done.
        progress: is told of every step and batch.

    Raises:
        StoppedError: Ctrl-C; what is finished is kept.
        InputError, VerificationError, DeviceUnavailableError: as a worker met them, or workers died again and again;
            the error says what is kept.
        RuntimeError: a bug in a worker, with its traceback.
    """
    workers: list[_Worker] = []
    try:
        # One by one, no list of them: those that were started end with this block, too, if the next cannot be.
        workers.extend(_Worker(start, place) for place in range(min(count, len(shards))))
        return _hand_out(start, workers, shards, progress)
    except KeyboardInterrupt:
        raise StoppedError(f"interrupted; {kept_in(folder)}") from None
    except (InputError, VerificationError, DeviceUnavailableError) as error:
        raise type(error)(f"{error}; {kept_in(folder)}") from error
    finally:
        _end(workers)


def _hand_out(
    start: StartsWorker, workers: list[_Worker], shards: Sequence[Shard], progress: RunProgress
) -> list[ShardRecord]:
    left, deaths, records = deque(shards), Counter[Shard | None](), list[ShardRecord]()
    while len(records) < len(shards):
        for connection in wait([worker.connection for worker in workers]):
            worker = next(each for each in workers if each.connection is connection)
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                left.extendleft([worker.shard] if worker.shard is not None else [])
                _note_death(worker, deaths)
                workers.remove(worker)
                if left:
                    workers.append(_Worker(start, worker.place))
                continue
            if isinstance(message, Moved):
                progress.spent(message.in_steps, message.seconds)
                progress.step(message.samples)
                progress.batch(message.images)
                continue
            if isinstance(message, Failed):
                raise_failed(message)
            worker.ready, worker.shard = True, None
            if isinstance(message, Drawn):
                records.append(message.record)
        for worker in workers:
            if worker.ready and worker.shard is None and left:
                shard = left.popleft()
                worker.send(Order(shard, again=bool(deaths[shard])))
    return records


def _note_death(worker: _Worker, deaths: Counter[Shard | None]) -> None:
    """Count it as its shard's, or under None as the engine's that it was opening; raises InputError at the third."""
    worker.connection.close()
    worker.process.join(_SECONDS_TO_END)
    code = worker.process.exitcode
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    if worker.ready and worker.shard is None:
        say(f"note: worker {worker.process.pid} ended ({how})")
        return
    what = f"{worker.shard.name}:" if worker.shard else "the engine:"
    deaths[worker.shard] += 1
    if deaths[worker.shard] == MOST_DEATHS:
        raise InputError(
            f"{what} {MOST_DEATHS} workers ended as they {'drew' if worker.shard else 'opened'} it, the last one by "
            f"{how}; if memory ran out, give fewer --workers or a smaller --batch-size"
        )
    goes_on = f"{worker.shard.name} goes to another" if worker.shard else "another is started"
    say(f"note: worker {worker.process.pid} ended ({how}); {goes_on}")


def raise_failed(failed: Failed) -> NoReturn:
    """Raise the error that a worker met; RuntimeError for a bug."""
    if failed.kind in _ERRORS:
        raise _ERRORS[failed.kind](failed.message)
    raise RuntimeError(f"in a worker: {failed.kind}: {failed.message}\n{failed.bug}")


def _end(workers: Sequence[_Worker]) -> None:
    """Let idle workers end by themselves, and the others at once: what they wrote is whole at any moment."""
    for worker in workers:
        if worker.shard is None and worker.ready:
            worker.send(None)
        else:
            worker.process.terminate()
    last = time.monotonic() + _SECONDS_TO_END
    for worker in workers:
        worker.process.join(max(0.0, last - time.monotonic()))
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        worker.connection.close()
