"""Shards drawn by several processes: the same images, whoever dies."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands.errors import DeviceUnavailableError, VerificationError
from diffusion.errors import InputError
from diffusion.process import SampleShape
from runtime import sample_worker
from runtime.runs import workers as workers_module
from runtime.runs.folder_store import FolderStore
from runtime.runs.shard_folder import ShardFolder
from runtime.runs.shard_progress import RunProgress
from runtime.runs.shards import ShardPlan
from runtime.sample_flags import sample_parser
from runtime.sample_worker import WorkerPlace, worker_places
from tests.runtime.runs.sharded_runs import (
    ROOT,
    RUN,
    children_of,
    draw,
    hidden,
    images_of,
    started,
    visible,
    workers_of,
)

LONG = ["--num", "60", "--batch-size", "2", "--steps", "400", "--backend", "onnxruntime", "--shard-size", "6"]


def wait_for(condition, what: str):
    for _ in range(1200):
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"waited a minute for {what}")


def ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_workers_draws_the_same_images(folder, count):
    assert draw("one", "--shard-size", "3") == 0
    assert draw("run", "--shard-size", "3", "--workers", str(count)) == 0
    assert {name: Path("run", name).read_bytes() for name in visible("run")} == {
        name: Path("one", name).read_bytes() for name in visible("one")
    }
    assert hidden("run") == set()


def test_a_killed_workers_shard_goes_to_another(folder):
    assert draw("one", run=LONG) == 0
    run = started(*LONG, "--workers", "2", "--out", "run")
    workers = wait_for(lambda: workers_of(run.pid), "workers")
    wait_for(lambda: list(Path("run").glob(".shard-*.lock")), "a shard that is being drawn")
    os.kill(workers[0], signal.SIGKILL)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert "ended (signal 9)" in err
    assert images_of("run") == images_of("one")
    assert hidden("run") == set()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_workers_end_with_their_parent_and_resume_goes_on(folder, how):
    run = started(*LONG, "--workers", "2", "--out", "run")
    workers = wait_for(lambda: (found := workers_of(run.pid)) and len(found) == 2 and found, "two workers")
    wait_for(lambda: list(Path("run").glob(".shard-*.lock")), "a shard that is being drawn")
    run.send_signal(how)
    _, err = run.communicate(timeout=60)
    if how == signal.SIGKILL:
        assert run.returncode == -signal.SIGKILL
    else:
        assert run.returncode == 128 + how
        assert "what is finished is kept in run: the same command with --resume goes on" in err
    wait_for(lambda: all(map(ended, workers)), "the workers' end")
    assert draw("run", "--resume", run=LONG) == 0
    assert draw("one", run=LONG) == 0
    assert images_of("run") == images_of("one")


def test_workers_do_not_outlive_a_killed_parent_by_their_shard(folder):
    long = ["--num", "40000", "--steps", "1000", "--backend", "onnxruntime", "--shard-size", "20000"]  # many minutes
    run = started(*long, "--workers", "2", "--out", "run")
    workers = []
    try:
        workers = wait_for(lambda: (found := workers_of(run.pid)) and len(found) == 2 and found, "two workers")
        wait_for(lambda: len(list(Path("run").glob(".shard-*.lock"))) == 2, "two shards that are being drawn")
        run.kill()
        run.wait(60)
        wait_for(lambda: all(map(ended, workers)), "the workers' end")
    finally:
        for worker in workers:
            if not ended(worker):
                os.kill(worker, signal.SIGKILL)
        run.communicate()


CHILD = "import os, time; from commands.signals import end_with_parent; end_with_parent(os.getppid()); time.sleep(600)"
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); input()"


def test_a_worker_in_a_long_network_call_ends_with_its_parent(folder):
    """One that has nothing to say for minutes, and so does not see that nobody listens."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdin=subprocess.PIPE, cwd=ROOT)
    (child,) = wait_for(lambda: children_of(parent.pid), "the child")
    time.sleep(2.0)  # it has imported
    assert not ended(child)
    parent.kill()
    parent.communicate()
    try:
        wait_for(lambda: ended(child), "the child's end")
    finally:
        if not ended(child):
            os.kill(child, signal.SIGKILL)


def test_a_shard_that_kills_every_worker_is_an_error(folder, capsys, monkeypatch):
    deaths = []
    send = workers_module._Worker.send

    def send_and_kill(worker, order):
        send(worker, order)
        if order is not None and order.shard.first == 6:
            os.kill(worker.process.pid, signal.SIGKILL)
            deaths.append(order.again)

    monkeypatch.setattr(workers_module._Worker, "send", send_and_kill)
    assert draw("run", "--workers", "2", run=LONG) == 2
    err = capsys.readouterr().err
    assert "shard-000000006-000000011: 3 workers ended as they drew it, the last one by signal 9" in err
    assert "--resume goes on" in err
    assert deaths == [False, True, True]


def test_workers_that_cannot_be_started_are_an_input_error(tmp_path):
    def start(place):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    shard_folder = ShardFolder(FolderStore(tmp_path), {"format": "npz"}, ShardPlan(0, 8, 4, 4), SampleShape(1, 1, 1))
    with pytest.raises(InputError, match=r"worker 0 cannot be started \(Too many open files\); give fewer --workers"):
        workers_module.draw_with_workers(start, 2, shard_folder, list(shard_folder.plan), RunProgress(8, 0, 4, 1, 2))


def test_a_worker_that_was_started_ends_where_the_next_cannot_be(tmp_path):
    process = SimpleNamespace(terminated=False, exitcode=-15, join=lambda seconds: None)
    process.terminate = lambda: setattr(process, "terminated", True)

    def start(place):
        if place:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return process, multiprocessing.Pipe()[0]

    shard_folder = ShardFolder(FolderStore(tmp_path), {"format": "npz"}, ShardPlan(0, 8, 4, 4), SampleShape(1, 1, 1))
    with pytest.raises(InputError, match="worker 1 cannot be started"):
        workers_module.draw_with_workers(start, 2, shard_folder, list(shard_folder.plan), RunProgress(8, 0, 4, 1, 2))
    assert process.terminated


def test_an_error_in_a_worker_is_the_commands(folder, capsys):
    assert draw("run", "--shard-size", "8") == 0
    Path("run/.shard-000000016-000000023.npz.lock").mkdir()  # a lock that nobody can take
    for name in ("npz", "json"):
        Path(f"run/shard-000000016-000000023.{name}").unlink()
    capsys.readouterr()
    assert draw("run", "--resume", "--workers", "2") == 2
    err = capsys.readouterr().err
    assert "shard-000000016-000000023.npz.lock: is not the lock that is expected there; remove it" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--workers", "0"], "--workers is 0, expected 1 to 1024"),
        (["--workers", "2", "--devices", "0"], "--workers and --devices were both given"),
        (["--devices", "0,1"], "--devices was given for an engine on the CPU; give --workers"),
        (["--workers", "2", "--format", "grid"], "--format grid: shards are npz, png or tar"),
    ],
)
def test_flags_that_make_no_sense(folder, capsys, flags, says):
    assert draw("run", *flags) == 2
    assert says in capsys.readouterr().err
    assert not Path("run").exists()


class FakeDeviceEngine:
    """Stands for an engine on a GPU."""


@pytest.mark.parametrize(
    ("flags", "visible_devices", "expected"),
    [
        ("0,1", None, ["0", "1"]),
        ("1", "GPU-a,GPU-b", ["GPU-b"]),
        ("0,2", "7,5,3", ["7", "3"]),
        ("2", "7,5", "names 2, and CUDA_VISIBLE_DEVICES is '7,5', 2 of them"),
        ("0,0", None, "expected numbers of different GPUs"),
        ("", None, "expected numbers of different GPUs"),
        ("-1", None, "expected numbers of different GPUs"),
    ],
)
def test_devices_are_those_this_process_may_see(monkeypatch, flags, visible_devices, expected):
    monkeypatch.setattr("runtime.sample_worker.DeviceEngine", FakeDeviceEngine)
    if visible_devices is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible_devices)
    args = sample_parser().parse_args([*RUN, f"--devices={flags}"])
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            worker_places(args, FakeDeviceEngine())
    else:
        assert worker_places(args, FakeDeviceEngine()) == [WorkerPlace(0, device) for device in expected]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "run/x.npz"),
            InputError,
            "run/x.npz: No space left on device",
        ),
        (
            ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"),
            DeviceUnavailableError,
            "ddpm-rt.cpu.",
        ),
        (MemoryError(), InputError, "a worker has too little memory"),
        (VerificationError("wrong"), VerificationError, "wrong"),
        (KeyError("x"), RuntimeError, "in a worker: KeyError: 'x'"),
        (OSError(errno.EIO, "Input/output error"), RuntimeError, "in a worker: OSError"),
    ],
)
def test_an_error_in_a_worker_is_what_it_is_in_one_process(monkeypatch, error, kind, says):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(sample_worker, "_draw", fails)
    monkeypatch.setattr(sample_worker, "end_with_parent", lambda parent: None)
    monkeypatch.setattr(sample_worker.signal, "signal", lambda number, handler: None)
    here, there = multiprocessing.Pipe()
    sample_worker._work(there, os.getpid(), None, 0)
    failed = here.recv()
    with pytest.raises(kind, match=says):
        workers_module.raise_failed(failed)
