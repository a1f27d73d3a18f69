"""What a log says of a run in shards, on a clock of the test's."""

import pytest

from runtime.runs.shard_progress import RunProgress
from runtime.runs.step_time import StepTime


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


def test_of_the_time_what_is_between_a_batch_and_its_last_step_is_the_networks(clock):
    time = StepTime(clock)
    for _ in range(3):
        clock.seconds += 2.0
        time.step()
    clock.seconds += 1.0  # a file
    time.other()
    clock.seconds += 2.0
    time.step()
    assert time.taken() == (8.0, 9.0)
    clock.seconds += 0.5  # waiting for a shard
    assert time.taken() == (0.0, 0.5)


def drawn(clock, seconds_per_step: float) -> None:
    """200 images in 20 batches of 10 steps, of which 100 were there."""
    with RunProgress(200, 100, 5, 10, 20, now=clock) as progress:
        for _ in range(20):
            for _ in range(10):
                clock.seconds += seconds_per_step
                progress.step(5)
            progress.spent(9.9 * seconds_per_step, 10.0 * seconds_per_step)
            progress.batch(5)


def test_a_log_gets_a_line_at_every_tenth(clock, capsys):
    drawn(clock, 1.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sampling: 105 of 200 images, 0.25 images/s, 20 s, 3 min left, network 99.0%"
    assert lines[4] == "sampling: 145 of 200 images, 0.45 images/s, 100 s, 100 s left, network 99.0%"
    assert lines[-1] == "sampling: 200 of 200 images, 0.5 images/s, 3 min, network 99.0%"
    assert len(lines) == 10


def test_a_log_gets_a_line_every_30_seconds_and_in_days_every_5_minutes(clock, capsys):
    drawn(clock, 10.0)  # half an hour
    assert len(capsys.readouterr().err.splitlines()) == pytest.approx(2000 / 40, abs=20)
    drawn(clock, 1000.0)
    assert len(capsys.readouterr().err.splitlines()) <= 202


def test_a_run_of_seconds_says_its_end_alone(clock, capsys):
    drawn(clock, 0.001)
    assert len(capsys.readouterr().err.splitlines()) == 1
