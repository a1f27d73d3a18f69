"""Shards drawn on Ray: an actor for each device holds an engine; Ray places the actors and starts them anew.

Ray's `ActorPool` hands each idle actor the next shard. An actor that dies is started again, elsewhere if its machine is
gone, and its shard goes on from what is in the folder. The actors write the shards; nothing but records comes back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from commands.errors import DeviceUnavailableError, StoppedError, VerificationError, reason
from commands.signals import ENDING
from diffusion.errors import InputError
from runtime.formats.shard_record import ShardRecord
from runtime.runs.places import ObjectUrl
from runtime.runs.shard_drawing import draw_shard
from runtime.runs.shard_folder import ShardFolder
from runtime.runs.shard_progress import RunProgress
from runtime.runs.shard_run import SamplerSource, kept_in
from runtime.runs.shards import Shard
from runtime.runs.step_time import StepTime
from runtime.runs.workers import MOST_DEATHS, Failed, raise_failed
from runtime.sample_worker import WorkerPlace, WorkerStart, failure, open_worker

LOCAL = "local"
# Results do not go through Ray's store of objects, whose least size this is.
_OBJECT_STORE_BYTES = 80 << 20
_SECONDS_TO_ANSWER = 10.0


class ShardDrawer:
    """An actor: draws shards with an engine that it opens once.

    Args:
        start: of the run.
        folder: in which the command was given; relative paths count from there where it exists.
    """

    def __init__(self, start: WorkerStart, folder: str) -> None:
        import ray

        self._start = start
        self._opened: tuple[ShardFolder, SamplerSource] | None = None
        self._again = ray.get_runtime_context().was_current_actor_reconstructed
        with contextlib.suppress(OSError):
            os.chdir(folder)

    def draw(self, shard: Shard) -> tuple[ShardRecord | Failed, float, float]:
        """Draw a shard. Returns its record, or an error; and the seconds in steps, and all seconds."""
        try:
            if self._opened is None:
                self._opened = open_worker(self._start, 0)
                self._clock = StepTime()
            clock, (folder, source) = self._clock, self._opened
            clock.other()  # it waited for the shard
            resume = self._start.args.resume or self._again
            record = draw_shard(source, folder, shard, resume, lambda num: clock.step(), lambda num: clock.other())
        except Exception as error:
            return failure(error), 0.0, 0.0
        return record, *clock.taken()


@contextlib.contextmanager
def connected(address: str, out: object) -> Iterator[Any]:
    """Ray, started on this machine for `local`, or that of a cluster; what was started ends with the block.

    Args:
        address: `local`, `auto`, `host:port` or `ray://host:port`.
        out: place of the run.

    Raises:
        InputError: a place that actors do not see.
        DeviceUnavailableError: no cluster at the address, or Ray cannot be started here.
    """
    if isinstance(out, ObjectUrl) and out.scheme == "memory":
        raise InputError(f"{out}: is the memory of one process, which workers do not see; give another --out")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when a cluster is started
    import ray

    check_answers(address)
    if ray.is_initialized():
        raise InputError("this process is connected to Ray already; draw the run in a process of its own")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        options |= {
            "address": "local",
            "num_cpus": len(os.sched_getaffinity(0)),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        options["address"] = address
    handlers = {number: signal.getsignal(number) for number in ENDING}
    try:
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            what = "cannot be started here" if address == LOCAL else "no cluster answers"
            raise DeviceUnavailableError(
                f"--ray {address}: {what} ({reason(error)}); start one with `ray start --head`, or give --ray local"
            ) from error
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray's own ends the process with exit code 1
        with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of workers that died
            yield ray
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Find out in seconds that nobody listens at an address with a port: Ray itself tries for minutes.

    Raises:
        DeviceUnavailableError: nobody does.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return  # Ray says what is wrong with it
    if host is None or port is None:
        return
    try:
        socket.create_connection((host, port), timeout=_SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise DeviceUnavailableError(
            f"--ray {address}: no cluster answers ({error.strerror or error}); start one with `ray start --head`, or "
            "give --ray local"
        ) from error


def draw_on_ray(
    ray: Any,
    start: WorkerStart,
    on_gpu: bool,
    folder: ShardFolder,
    shards: Sequence[Shard],
    steps: int,
    progress: RunProgress,
) -> list[ShardRecord]:
    """Draw shards on a cluster.

    Args:
        ray: connected.
        start: of the run; its first place says the threads of an actor, and there are as many actors as places.
        on_gpu: whether an actor takes a GPU.
        folder: claimed.
        shards: that are not done.
        steps: of a chain.
        progress: is told of every shard.

    Raises:
        StoppedError: Ctrl-C; what is finished is kept.
        InputError, VerificationError, DeviceUnavailableError: as an actor met them, or a shard's actors died again and
            again; the error says what is kept.
        RuntimeError: a bug in an actor, with its traceback.
    """
    actor = ray.remote(ShardDrawer).options(
        num_cpus=start.places[0].threads or 1,
        num_gpus=1 if on_gpu else 0,
        max_restarts=-1,
        max_task_retries=MOST_DEATHS - 1,
    )
    count, records = min(len(start.places), len(shards)), list[ShardRecord]()
    drawers = [actor.remote(start, str(Path.cwd())) for _ in range(count)]
    pool = ray.util.ActorPool(drawers)
    try:
        for drawn, in_steps, seconds in pool.map_unordered(lambda drawer, shard: drawer.draw.remote(shard), shards):
            progress.spent(in_steps, seconds)
            if isinstance(drawn, Failed):
                raise_failed(drawn)
            records.append(drawn)
            progress.step(drawn.num * steps)
            progress.batch(drawn.num)
    except KeyboardInterrupt:
        raise StoppedError(f"interrupted; {kept_in(folder)}") from None
    except ray.exceptions.RayError as error:
        raise InputError(
            f"a worker of Ray ended {MOST_DEATHS} times at one shard ({reason(error)}); if memory ran out, give fewer "
            f"workers or a smaller batch; {kept_in(folder)}"
        ) from error
    except (InputError, VerificationError, DeviceUnavailableError) as error:
        raise type(error)(f"{error}; {kept_in(folder)}") from error
    return records


def ray_places(ray: Any, workers: int | None, threads: int, on_gpu: bool) -> list[WorkerPlace]:
    """A place for each actor: one for each GPU, or for each machine where `workers` does not say how many.

    Raises:
        InputError: the cluster has less.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if on_gpu:
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if not gpus:
            raise InputError("--ray: the cluster has no GPU, and the engine runs on one; give an engine for the CPU")
        return [WorkerPlace(threads)] * min(gpus, workers or gpus)
    cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise InputError("--ray: the cluster has no CPU to give; start it with --num-cpus")
    count = workers or len(cpus)
    threads = threads or max(1, min(cpus) // -(-count // len(cpus)))
    room = sum(each // threads for each in cpus)
    if count > room:
        raise InputError(
            f"--ray: {count} workers of {threads} threads were asked for, and the cluster has room for {room}; give "
            "fewer --workers or --threads"
        )
    return [WorkerPlace(threads)] * count
