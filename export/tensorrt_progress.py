"""A progress bar of the builder's steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from commands.progress import progress_bar


def make_progress_monitor(trt: Any) -> Any:
    """An `IProgressMonitor` whose `bar()` is a context in which steps are shown.

    Phases begin inside phases, so the total grows as the builder goes on. Callbacks may come from several threads:
    each changes a number and draws, which tqdm locks.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._bar: Any = None

        @contextlib.contextmanager
        def bar(self) -> Iterator[None]:
            with progress_bar(0, "building", unit="step") as self._bar:
                yield

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._bar.total += num_steps
            self._bar.refresh()

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._bar.update()
            return True

    return Monitor()
