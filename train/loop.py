"""The loop of Algorithm 1: updates, metrics, held-out loss, saves, and a clean stop."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import torch

from commands.errors import StoppedError
from commands.program import say
from commands.progress import progress_bar
from commands.signals import ENDING, note_signal
from diffusion.errors import InputError
from train.batches import Batches
from train.evaluation import HeldOutLoss
from train.learner import Learner, learning_rate_at
from train.presets import LoggingConfig, TrainingConfig
from train.run_folder import RunFolder

# Several processes must agree on the step to stop at; asking each other every step would cost more than it is worth.
_AGREE_EVERY = 8
# A terminal and a launcher may both pass on one Ctrl-C; only a later one counts as the second.
_SAME_SIGNAL_SECONDS = 1.0


class StopRequest:
    """While open, turns the first signal that ends a program into a request; a second one raises KeyboardInterrupt.

    Attributes:
        requested: whether a signal came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._requested_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, accelerator: Any, updates: int) -> bool:
        """Whether to stop after `updates` updates; the same answer in every process."""
        if accelerator.num_processes == 1:
            return self.requested
        if updates % _AGREE_EVERY:
            return False
        asked = torch.tensor([int(self.requested)], device=accelerator.device)
        return bool(accelerator.reduce(asked, reduction="sum").item())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        note_signal(number)
        now = time.monotonic()
        if self.requested and now - self._requested_at > _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._requested_at = True, now
            say("stopping after this step; once more to stop without saving")


class Meter:
    """Adds up on the device, without waiting for it, and reads once per line.

    Args:
        accelerator: whose processes the means go over.
        state: of an earlier meter, to continue in the middle of a line.
    """

    def __init__(self, accelerator: Any, state: dict[str, float] | None = None) -> None:
        self._accelerator = accelerator
        self._sums = torch.zeros(2, device=accelerator.device)  # loss, gradient norm
        self._broken = torch.zeros(2, dtype=torch.float64, device=accelerator.device)  # updates, loss
        self._updates = 0
        if state is not None:
            self._sums += torch.tensor([state["loss"], state["grad_norm"]], device=accelerator.device)
            self._updates = int(state["updates"])
        self._timed_updates, self._seconds = 0, 0.0
        self._since = time.perf_counter()

    def add(self, updates: int, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Take in one update, the last one of so many."""
        is_first = (self._broken[0] == 0) & ~torch.isfinite(loss)
        self._broken = torch.where(is_first, torch.stack([torch.full_like(loss, updates), loss]), self._broken)
        self._sums += torch.stack([loss, grad_norm])
        self._updates += 1
        self._timed_updates += 1

    def read(self, batch_size: int) -> dict[str, float]:
        """`loss`, `grad_norm` and `images_per_second` since the last reading. Every process must call this.

        Args:
            batch_size: images per update, over all processes.
        """
        loss, grad_norm = self._accelerator.reduce(self._sums, reduction="mean").tolist()
        self._seconds += time.perf_counter() - self._since
        line = {
            "loss": loss / self._updates,
            "grad_norm": grad_norm / self._updates,
            "images_per_second": self._timed_updates * batch_size / self._seconds,
        }
        self._sums, self._updates = torch.zeros_like(self._sums), 0
        self._timed_updates, self._seconds, self._since = 0, 0.0, time.perf_counter()
        return line

    def first_broken(self) -> tuple[int, float] | None:
        """The first update of this process with a loss that is not finite, and that loss."""
        updates, loss = self._broken.tolist()
        return (int(updates), loss) if updates else None

    def state(self) -> dict[str, float]:
        """What has been added since the last reading."""
        loss, grad_norm = self._sums.tolist()
        return {"loss": loss, "grad_norm": grad_norm, "updates": self._updates}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent here is not training."""
        self._seconds += time.perf_counter() - self._since
        try:
            yield
        finally:
            self._since = time.perf_counter()


class TrainingLoop:
    """All updates of a run, from where it stands to its end.

    Args:
        accelerator: an `accelerate.Accelerator`.
        config: of the run.
        learner, batches: what to update, with what.
        evaluate: the held-out loss, or None where nothing is held out.
        folder: for metrics and state.
        logging_config: how often.
        stop: asked after every update.
        resume_command: what to tell a user who stopped.
    """

    def __init__(
        self,
        accelerator: Any,
        config: TrainingConfig,
        learner: Learner,
        batches: Batches,
        evaluate: HeldOutLoss | None,
        folder: RunFolder,
        logging_config: LoggingConfig,
        stop: StopRequest,
        resume_command: str,
    ) -> None:
        self._accelerator, self._config, self._learner, self._batches = accelerator, config, learner, batches
        self._evaluate, self._folder, self._logging_config, self._stop = evaluate, folder, logging_config, stop
        self._resume_command = resume_command
        self._is_main: bool = accelerator.is_main_process

    def run(self, state: dict[str, Any] | None, description: str) -> dict[str, Any]:
        """Go on from `state`, or begin; save at intervals and at the end.

        Returns:
            The last line of the metrics, with `seconds` over all parts of the run.

        Raises:
            InputError: a loss or a weight is not finite, or the folder cannot be written.
            StoppedError: a signal came; the state is saved.
        """
        start, seconds_before, last_line = 0, 0.0, {}
        if state is not None:
            start, seconds_before, last_line = state["step"], state["seconds"], state["last_line"]
        steps = self._config.steps
        meter = Meter(self._accelerator, None if state is None else state["meter"])
        began = saved_at = time.monotonic()
        saved_step = start
        with progress_bar(steps, description, unit="step", lines_in_a_log=self._is_main, initial=start) as bar:
            for step, batch in enumerate(self._batches.iterate(start, steps, self._logging_config.num_workers), start):
                loss, grad_norm = self._learner.update(step, batch)
                updates = step + 1
                meter.add(updates, loss, grad_norm)
                is_last = updates == steps
                evaluates = is_last or updates % self._logging_config.evaluate_every == 0
                if evaluates or updates % self._logging_config.log_every == 0:
                    last_line = self._log(
                        meter, updates, evaluates, seconds_before + time.monotonic() - began, saved_step
                    )
                    bar.set_postfix_str(
                        f"loss {last_line['loss']:.4f}, {last_line['images_per_second']:.0f} images/s", False
                    )
                bar.update()
                stops = self._stop.agreed(self._accelerator, updates)
                due = time.monotonic() - saved_at > self._logging_config.save_seconds
                if self._is_main and (is_last or stops or due):
                    if broken := meter.first_broken():
                        self._check_finite(broken[1], broken[0], saved_step)
                    self._check_weights(updates, saved_step)
                    with meter.paused():
                        self._folder.save(
                            {
                                "step": updates,
                                "seconds": seconds_before + time.monotonic() - began,
                                "last_line": last_line,
                                "meter": meter.state(),
                                **self._learner.state(),
                            }
                        )
                    saved_at, saved_step = time.monotonic(), updates
                if stops:
                    raise StoppedError(
                        f"stopped at step {updates:,} of {steps:,}, its state is saved; go on with: "
                        f"{self._resume_command}"
                    )
        return {**last_line, "seconds": seconds_before + time.monotonic() - began}

    def _log(self, meter: Meter, updates: int, evaluates: bool, seconds: float, saved_step: int) -> dict[str, Any]:
        line = {
            "step": updates,
            **meter.read(self._config.batch_size),
            "learning_rate": learning_rate_at(updates - 1, self._config),
            "seconds": round(seconds, 3),
        }
        if not math.isfinite(line["loss"]):  # of this process or of another
            first, loss = meter.first_broken() or (updates, line["loss"])
            self._check_finite(loss, first, saved_step)
        if self._is_main:
            ema = self._learner.ema
            if evaluates and self._evaluate is not None and ema is not None:
                with meter.paused():
                    line["held_out_loss"] = self._evaluate(ema.predict)
                self._check_finite(line["held_out_loss"], updates, saved_step, "held-out loss")
            # A gradient that overflows in fp16 is skipped by the loss scaler; JSON has no infinity.
            self._folder.log({**line, "grad_norm": line["grad_norm"] if math.isfinite(line["grad_norm"]) else None})
        return line

    def _check_weights(self, updates: int, saved_step: int) -> None:
        """A loss is that of the weights before its update: broken ones after the last update must not be saved."""
        broken = self._learner.first_broken_weight()
        if broken is not None:
            raise self._diverged(f"the weights {broken} are not finite after step {updates:,}", saved_step)

    def _check_finite(self, loss: float, updates: int, saved_step: int, what: str = "loss") -> None:
        if not math.isfinite(loss):
            raise self._diverged(f"the {what} is {loss} at step {updates:,}, expected a finite number", saved_step)

    def _diverged(self, what: str, saved_step: int) -> InputError:
        kept = f"the state of step {saved_step:,} is kept" if saved_step else "no state was saved yet"
        return InputError(
            f"{what}: training diverged ({kept}); "
            f"start over with a --learning-rate below {self._config.learning_rate:g}"
        )
