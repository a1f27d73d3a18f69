"""Progress where there is no terminal."""

from __future__ import annotations

import pytest

from commands import progress


class Clock:
    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar(1500, "train digits", unit="step", lines_in_a_log=True, initial=1000) as bar:
        for _ in range(500):
            clock.seconds += 0.05
            bar.set_postfix_str("loss 0.1", refresh=False)
            bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "train digits: 1,200 of 1,500 steps, 10 s, loss 0.1",
        "train digits: 1,400 of 1,500 steps, 20 s, loss 0.1",
        "train digits: 1,500 of 1,500 steps, 25 s, loss 0.1",
    ]


def test_a_log_of_two_days_stays_short(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar(172800, "train", unit="step", lines_in_a_log=True) as bar:
        for _ in range(172800):
            clock.seconds += 1
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert 500 < len(lines) < 1000


def test_what_ends_by_an_error_does_not_say_that_it_is_done(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress.progress_bar(10, "train", lines_in_a_log=True)
    bar.update()
    bar.__exit__(ValueError, ValueError("diverged"), None)
    assert capsys.readouterr().err == ""


def test_without_it_a_log_gets_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar(3, "sampling") as bar:
        bar.update(3)
        bar.set_postfix_str("done")
    assert capsys.readouterr().err == ""
