"""Shards drawn on Ray, which is started here: the same images, also where a worker is killed."""

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from runtime.sample_ray import ray_places
from runtime.sample_worker import WorkerPlace
from tests.runtime.runs.sharded_runs import children_of, draw, hidden, images_of, started

RUN = ["--num", "40", "--batch-size", "2", "--steps", "400", "--backend", "onnxruntime", "--shard-size", "4"]


def descendants_of(process: int) -> set[int]:
    children = children_of(process)
    return set(children).union(*map(descendants_of, children))


def wait_for(condition, what: str):
    for _ in range(2400):
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"waited two minutes for {what}")


def drawing(folder: Path) -> int | None:
    """The process that holds the lock of a shard."""
    for lock in folder.glob(".shard-*.lock"):
        try:
            text = lock.read_text()
        except OSError:
            continue
        if text:
            return int(text)
    return None


@pytest.mark.slow
def test_of_two_workers_one_is_killed_and_the_images_are_the_same(folder):
    """And what was started for the run ends with it."""
    assert draw("one", run=RUN) == 0
    run = started(*RUN, "--ray", "local", "--workers", "2", "--out", "run", "--json")
    worker = wait_for(lambda: drawing(folder / "run"), "a shard that is being drawn")
    started_for_it = descendants_of(run.pid)
    assert worker in started_for_it
    os.kill(worker, signal.SIGKILL)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    report = json.loads(out)
    assert (report["workers"], report["shards"], report["shards_drawn"]) == (2, 10, 10)
    assert 0.0 < report["network_share"] <= 1.0
    assert images_of("run") == images_of("one")
    assert hidden("run") == set()
    assert "Traceback" not in re.sub(r"\(raylet\).*", "", err)
    wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in started_for_it), "the end of Ray")


class Cluster:
    """What is asked of Ray."""

    def __init__(self, *resources: dict) -> None:
        self._resources = resources

    def nodes(self) -> list[dict]:
        return [{"Alive": True, "Resources": each} for each in self._resources] + [
            {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        ]


@pytest.mark.parametrize(
    ("cluster", "workers", "threads", "on_gpu", "expected"),
    [
        (Cluster({"CPU": 2.0}), None, 0, False, [WorkerPlace(2)]),
        (Cluster({"CPU": 2.0}), 2, 0, False, [WorkerPlace(1)] * 2),
        (Cluster({"CPU": 16.0}, {"CPU": 8.0}, {"memory": 1.0}), None, 0, False, [WorkerPlace(8)] * 2),
        (Cluster({"CPU": 16.0}, {"CPU": 8.0}), 4, 0, False, [WorkerPlace(4)] * 4),
        (Cluster({"CPU": 16.0}), 3, 2, False, [WorkerPlace(2)] * 3),
        (Cluster({"CPU": 16.0}), 5, 4, False, "5 workers of 4 threads were asked for, and the cluster has room for 4"),
        (Cluster({"memory": 1.0}), None, 0, False, "the cluster has no CPU"),
        (Cluster({"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}), None, 0, True, [WorkerPlace(0)] * 6),
        (Cluster({"CPU": 16.0, "GPU": 4.0}), 2, 0, True, [WorkerPlace(0)] * 2),
        (Cluster({"CPU": 16.0}), None, 0, True, "the cluster has no GPU"),
    ],
)
def test_a_worker_for_each_machine_or_gpu(cluster, workers, threads, on_gpu, expected):
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            ray_places(cluster, workers, threads, on_gpu)
    else:
        assert ray_places(cluster, workers, threads, on_gpu) == expected


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ray", "local", "--devices", "0"], "--ray and --devices were both given"),
        (["--ray", "local", "--workers", "0"], "--workers is 0, expected 1 to 1024"),
        (["--ray", "local", "--format", "grid"], "--format grid: shards are npz, png or tar"),
        (["--ray", "local", "--out", "memory://run"], "is the memory of one process"),
    ],
)
def test_flags_that_make_no_sense(folder, capsys, flags, says):
    assert draw("run", *flags) == 2
    assert says in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize("address", ["nothing", "127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_without_a_cluster_at_the_address_the_line_says_so(folder, capsys, address):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and nobody listens
        address = address.format(port=bound.getsockname()[1])
        assert draw("run", "--ray", address) == 4
    assert f"--ray {address}: no cluster answers" in capsys.readouterr().err
    assert not Path("run").exists()
