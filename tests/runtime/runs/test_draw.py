"""What a step takes, told apart from what the first one does."""

from __future__ import annotations

import json

import pytest

from runtime.chain.host import HostChain
from runtime.runs.draw import StepClock
from runtime.sample import main


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_first_steps_and_the_time_between_batches_are_no_steps() -> None:
    now = Time()
    clock = StepClock(3, now)
    for batch in range(2):
        now.seconds += 50.0  # compilation, writing
        for step in range(3):
            now.seconds += 7.0 if step == 0 else 0.25
            clock.step()
        assert clock.steps == 3 * (batch + 1)
    assert clock.ms_per_step(1000.0) == 250.0


def test_chains_of_one_step_count_it_whole() -> None:
    clock = StepClock(1, Time())
    clock.step()
    clock.step()
    assert clock.ms_per_step(3.0) == 1500.0
    assert StepClock(5, Time()).ms_per_step(0.0) == 0.0


def test_the_commands_figure_is_without_the_first_step(
    folder: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, step = Time(), HostChain.enqueue
    monkeypatch.setattr("runtime.runs.draw.StepClock", lambda steps: StepClock(steps, now))

    def slow_at_first(self: HostChain, num_rows: int) -> None:
        now.seconds += 0.002 if getattr(self, "warm", False) else 30.0
        self.warm = True  # type: ignore[attr-defined]
        step(self, num_rows)

    monkeypatch.setattr(HostChain, "enqueue", slow_at_first)
    assert main(["--num", "2", "--steps", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ms_per_step"] == pytest.approx(2.0)
