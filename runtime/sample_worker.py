"""A worker of `python -m runtime.sample`: a process with an engine of its own, which draws the shards it is given."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from commands.errors import DeviceUnavailableError, VerificationError, user_error
from commands.signals import end_with_parent
from diffusion.errors import InputError
from diffusion.number_checks import shown
from runtime.device.interface import DeviceEngine
from runtime.engines.interface import Engine
from runtime.runs.places import ObjectUrl
from runtime.runs.shard_drawing import draw_shard
from runtime.runs.shard_folder import ShardFolder
from runtime.runs.shard_run import SamplerSource
from runtime.runs.step_time import StepTime
from runtime.runs.workers import Drawn, Failed, Moved, Ready

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SECONDS_BETWEEN_MESSAGES = 0.2


@dataclass(frozen=True)
class WorkerPlace:
    """Where a worker runs: its threads of the CPU, and its GPU as `CUDA_VISIBLE_DEVICES` names it; None for none."""

    threads: int
    device: str | None = None


def worker_places(args: argparse.Namespace, engine: Engine) -> list[WorkerPlace] | None:
    """What `--workers` and `--devices` say; None where this process shall draw.

    Raises:
        InputError: a number or a device that makes no sense, or flags that do not suit the engine's device.
    """
    if args.workers is None and args.devices is None:
        return None
    if args.workers is not None and args.devices is not None:
        raise InputError("--workers and --devices were both given; give --workers on a CPU, --devices on GPUs")
    if isinstance(args.out, ObjectUrl) and args.out.scheme == "memory":
        raise InputError(f"{args.out}: is the memory of one process, which workers do not see; give another --out")
    on_gpu = isinstance(engine, DeviceEngine)
    cores = len(os.sched_getaffinity(0))
    if args.workers is not None:
        if on_gpu:
            raise InputError("--workers was given for an engine on a GPU; give --devices, such as --devices 0,1")
        return [WorkerPlace(args.threads or max(1, cores // args.workers))] * args.workers
    if not on_gpu:
        raise InputError("--devices was given for an engine on the CPU; give --workers, or --device cuda")
    here = os.environ.get(_VISIBLE)
    names = None if here is None else here.split(",")
    devices = args.devices.split(",")
    for device in devices:
        if not device.isdecimal() or len(device) > 4 or devices.count(device) > 1:
            raise InputError(f"--devices is {shown(args.devices)}, expected numbers of different GPUs, such as 0,1")
        if names is not None and int(device) >= len(names):
            raise InputError(f"--devices names {device}, and {_VISIBLE} is {shown(here)}, {len(names)} of them")
    return [WorkerPlace(args.threads, device if names is None else names[int(device)]) for device in devices]


@dataclass(frozen=True)
class WorkerStart:
    """Starts the workers of a run: a `StartsWorker`.

    Attributes:
        args: of the command.
        shard_size, batch_size: of the run.
        identity: of the run; a worker whose own is another one refuses to draw.
        places: one for each worker.
    """

    args: argparse.Namespace
    shard_size: int
    batch_size: int
    identity: Mapping[str, Any]
    places: Sequence[WorkerPlace]

    def __call__(self, place: int) -> tuple[SpawnProcess, Connection]:
        """As `StartsWorker`."""
        context = multiprocessing.get_context("spawn")  # what was opened before a fork does not work in the child
        parents, workers = context.Pipe()
        arguments = (workers, os.getpid(), self, place)
        process = context.Process(target=_work, args=arguments, name=f"ddpm-rt worker {place}", daemon=True)
        with _visible(self.places[place].device):
            process.start()
        workers.close()  # so that the end of the worker is the end of the pipe
        return process, parents


@contextlib.contextmanager
def _visible(device: str | None) -> Iterator[None]:
    before = os.environ.get(_VISIBLE)
    if device is not None:
        os.environ[_VISIBLE] = device
    try:
        yield
    finally:
        if before is not None:
            os.environ[_VISIBLE] = before
        elif device is not None:
            del os.environ[_VISIBLE]


def _work(connection: Connection, parent: int, start: WorkerStart, place: int) -> None:
    """What the process does."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(parent)
    try:
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
            _draw(connection, start, place)
    except Exception as error:
        connection.send(failure(error))


def failure(error: Exception) -> Failed:
    """What a worker says of the error that it is handling."""
    if isinstance(error, MemoryError):
        message = f"a worker has too little memory ({error or 'allocation failed'}); give fewer --workers"
        return Failed(InputError.__name__, message)
    found = user_error(error, "runtime.sample")
    if found is None:
        return Failed(type(error).__name__, str(error), traceback.format_exc())
    kinds = (InputError, VerificationError, DeviceUnavailableError)
    return Failed(next(kind.__name__ for kind in kinds if isinstance(found, kind)), str(found))


def open_worker(start: WorkerStart, place: int) -> tuple[ShardFolder, SamplerSource]:
    """The folder of the run, and what draws its batches here.

    Raises:
        InputError: another run than the command's, as where a file has changed since.
        DeviceUnavailableError, VerificationError: as `open_request`.
    """
    from runtime.sample_request import open_request
    from runtime.sample_shards import open_shards

    args = start.args
    args.threads, args.batch_size = start.places[place].threads, start.batch_size
    folder, source = open_shards(args, open_request(args), start.shard_size, start.batch_size)
    for name, value in start.identity.items():
        if folder.identity.get(name) != value:
            raise InputError(
                f"a worker's {name} is {shown(folder.identity.get(name))}, the run's is {shown(value)}; give --backend "
                "and --threads, and leave the files alone while they are sampled from"
            )
    return folder, source


def _draw(connection: Connection, start: WorkerStart, place: int) -> None:
    args = start.args
    folder, source = open_worker(start, place)
    samples = images = 0
    sent, clock = time.monotonic(), StepTime()

    def tell(more_samples: int, more_images: int) -> None:
        nonlocal samples, images, sent
        samples, images, now = samples + more_samples, images + more_images, time.monotonic()
        if now - sent >= _SECONDS_BETWEEN_MESSAGES:
            connection.send(Moved(samples, images, *clock.taken()))
            samples, images, sent = 0, 0, now

    def after_step(num: int) -> None:
        clock.step()
        tell(num, 0)

    def after_batch(num: int) -> None:
        clock.other()
        tell(0, num)

    connection.send(Ready())
    while (order := connection.recv()) is not None:
        resume = args.resume or order.again
        record = draw_shard(source, folder, order.shard, resume, after_step, after_batch)
        connection.send(Moved(samples, images, *clock.taken()))
        samples = images = 0
        connection.send(Drawn(record))
