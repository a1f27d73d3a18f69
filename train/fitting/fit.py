"""The fit: a gradient step of a table at a time, from its start to its last, saved and resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from commands.errors import StoppedError
from commands.progress import progress_bar
from commands.whole_files import whole_file
from diffusion.errors import InputError
from diffusion.samplers.user_table import table_from_json, table_to_json
from diffusion.step_table import StepTable
from train.fitting.energy import EnergyDistance
from train.fitting.free_table import FreeTable
from train.fitting.network import FittedNetwork
from train.fitting.rows import run_rows
from train.fitting.teacher import TeacherDistance
from train.loop import StopRequest
from train.saved_state import read_state, write_state

STATE_FORMAT = 1
_BETAS = (0.9, 0.95)  # of Adam; the second moment of so few steps needs a short memory
_WARMUP, _LAST_RATE = 5, 0.05  # steps of growth; the last rate as a share of the highest
# Of the steps, those with free timesteps; the rest moves the coefficients to the rounded ones.
_FREE_SHARE = 0.65
_TIMESTEP_RATE = 2.0  # of their learning rate to that of the coefficients
_MOVE_RATE = 0.1  # of x_T within its ball, as a share of what its gradient says
_SAVE_SECONDS = 15.0
_SAVED = ("start", "start_name", "step", "free", "are_free", "optimizer", "moved")


@dataclass(frozen=True)
class FitConfig:
    """How a table is fitted.

    Attributes:
        iterations: gradient steps.
        batch_size: samples of each.
        learning_rate: the highest, of the coefficients.
        free_timesteps: whether the timesteps may move.
    """

    iterations: int
    batch_size: int
    learning_rate: float
    free_timesteps: bool


class SavedFit:
    """The file that an unfinished fit is kept in, `….state` beside the table.

    Args:
        path: of it.
        identity: what determines the fit; another one is not gone on with.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self._identity = path, dict(identity)

    def read(self) -> dict[str, Any] | None:
        """What was saved; None where nothing was.

        Raises:
            InputError: the file cannot be read, was changed, or is of another fit.
        """
        if not self.path.exists():
            return None
        remedy = "remove it, or start over without --resume"
        state = read_state(self.path, STATE_FORMAT, remedy)
        identity = state.get("identity")
        if not isinstance(identity, dict) or not set(_SAVED) <= set(state):
            raise InputError(f"{self.path}: is not the state of a fit; {remedy}")
        for name, asked in self._identity.items():
            if identity.get(name) != asked:
                raise InputError(
                    f"{self.path}: holds a fit with {name} {identity.get(name)!r}, asked for is {asked!r}; {remedy}"
                )
        return state

    def write(self, state: Mapping[str, Any]) -> None:
        """Save it, whole or not at all. Raises InputError where the disk does not take it."""
        with whole_file(self.path) as temporary:
            write_state(temporary, {"format": STATE_FORMAT, "identity": self._identity, **state})

    def remove(self) -> None:
        """The fit is done, however it ended."""
        self.path.unlink(missing_ok=True)


class Fit:
    """One fit, between any two of its steps.

    Args:
        network: to fit to.
        objective: what is made small.
        start: the table to begin with.
        config: how.
    """

    def __init__(
        self, network: FittedNetwork, objective: EnergyDistance | TeacherDistance, start: StepTable, config: FitConfig
    ) -> None:
        self._network, self._objective, self.config = network, objective, config
        self.free = FreeTable(start, network.process.schedule.num_train_timesteps, config.free_timesteps)
        self.free.to(network.device)
        rate = config.learning_rate
        self._rates = (rate, _TIMESTEP_RATE * rate)
        groups = [{"params": [each]} for each in (self.free.offsets, self.free.gaps)]
        self._optimizer = torch.optim.Adam(groups, lr=rate, betas=_BETAS)
        self.step, self.loss = 0, math.nan
        self._recompute = network.recomputes(len(start), config.batch_size)

    def advance(self) -> None:
        """One step. Raises InputError if the loss is not finite."""
        config, objective = self.config, self._objective
        if self.free.gaps.requires_grad and self.step >= _FREE_SHARE * config.iterations:
            self.free.round_timesteps()
        indices = self._indices()
        x = self._network.noise(indices)
        moved = objective.moved if isinstance(objective, TeacherDistance) and objective.moved.requires_grad else None
        if moved is not None:
            x = x + moved[list(indices)]
        x_0 = run_rows(
            self.free.kind,
            self.free.coefficients().float(),
            self.free.timesteps().float(),
            self._network.predict(indices),
            x,
            self._recompute,
        )
        loss = objective.loss(x_0, indices)
        self.loss = loss.item()
        if not math.isfinite(self.loss):
            raise InputError(
                f"the loss is {self.loss} at step {self.step + 1}, expected a finite number: the fit diverged; "
                f"start over with a learning rate below {config.learning_rate:g}"
            )
        self._optimizer.zero_grad()
        loss.backward()
        growth = min(1.0, (self.step + 1) / _WARMUP)
        decay = _LAST_RATE + (1.0 - _LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * self.step / config.iterations))
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * growth * decay
        self._optimizer.step()
        if moved is not None and moved.grad is not None:
            assert isinstance(objective, TeacherDistance)
            with torch.no_grad():  # of the sum over elements, so that a step does not shrink with their number
                moved -= _MOVE_RATE * x_0.numel() * moved.grad
            moved.grad = None
            objective.keep_in_ball(indices)
        self.step += 1

    def table(self, name: str) -> StepTable:
        """The table as it stands, with whole timesteps."""
        return self.free.table(name)

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs to go on with the same numbers."""
        moved = self._objective.moved.detach() if isinstance(self._objective, TeacherDistance) else None
        return {
            "step": self.step,
            "free": self.free.state_dict(),
            "are_free": self.free.gaps.requires_grad,
            "optimizer": self._optimizer.state_dict(),
            "moved": moved,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.step = state["step"]
        self.free.load_state_dict(state["free"])
        if self.free.gaps.requires_grad and not state["are_free"]:
            self.free.round_timesteps()
        self._optimizer.load_state_dict(state["optimizer"])
        if state["moved"] is not None and isinstance(self._objective, TeacherDistance):
            with torch.no_grad():
                self._objective.moved.copy_(state["moved"])

    def _indices(self) -> range:
        size = self.config.batch_size
        if isinstance(self._objective, TeacherDistance):
            num_batches = self._objective.num_pairs // size
            return range(size * (self.step % num_batches), size * (self.step % num_batches + 1))
        return range(size * self.step, size * (self.step + 1))


def run_fit(fit: Fit, start: StepTable, start_name: str, saved: SavedFit, state: Mapping[str, Any] | None) -> None:
    """All steps of a fit that are left.

    Args:
        fit: as it was made.
        start, start_name: the table that it began with, which is saved with it.
        saved: where to save it.
        state: of an earlier run to go on from; None to begin.

    Raises:
        InputError: the fit diverged, or the disk does not take its state.
        StoppedError: a signal came; the state is saved.
    """
    if state is not None:
        fit.load_state(state)
    total, begin = {"start": table_to_json(start), "start_name": start_name}, time.monotonic()
    iterations = fit.config.iterations
    with (
        StopRequest() as stop,
        progress_bar(iterations, f"fit {len(start)} calls", "step", lines_in_a_log=True, initial=fit.step) as bar,
    ):
        while fit.step < iterations:
            fit.advance()
            bar.set_postfix_str(f"loss {fit.loss:.4g}", False)
            bar.update()
            if stop.requested or time.monotonic() - begin > _SAVE_SECONDS:
                saved.write({**total, **fit.state()})
                begin = time.monotonic()
            if stop.requested:
                raise StoppedError(f"stopped at step {fit.step} of {iterations}, its state is saved; --resume goes on")


def saved_start(state: Mapping[str, Any]) -> tuple[StepTable, str]:
    """The table that a saved fit began with, and its name."""
    return table_from_json(state["start"]), str(state["start_name"])
