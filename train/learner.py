"""One update of the weights: Algorithm 1 of Ho et al. 2020 with AdamW, clipping, warm-up and averaging."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from diffusion.errors import InputError
from train.batches import Batch, Draws
from train.objective import Objective
from train.presets import TrainingConfig
from train.schedule_learner import ScheduleLearner


def _constant(progress: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    # Half a cosine down to zero (Loshchilov & Hutter 2017, eq. 5, without restarts).
    return 0.5 * (1.0 + math.cos(math.pi * progress))


# From the fraction of the run that is done to the fraction of the learning rate.
DECAYS: dict[str, Callable[[float], float]] = {"constant": _constant, "cosine": _cosine}


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """The learning rate of update `step`, counted from 0: linear warm-up, then the decay.

    Raises:
        InputError: an unknown decay.
    """
    if config.learning_rate_decay not in DECAYS:
        raise InputError(f"learning_rate_decay is {config.learning_rate_decay!r}, expected one of {', '.join(DECAYS)}")
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warmup * DECAYS[config.learning_rate_decay](step / config.steps)


def ema_decay_at(update: int, ema_decay: float) -> float:
    """The decay after update number `update` (from 1): min(ema_decay, (1 + n)/(10 + n)).

    The second term keeps the random initial weights out of the average of a short run.
    """
    return min(ema_decay, (1 + update) / (10 + update))


class Ema:
    """A copy of a network that follows it: ema ← decay · ema + (1 − decay) · weights.

    Attributes:
        network: the averaged network, in evaluation mode, without gradients.
    """

    def __init__(self, network: Any, ema_decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._ema_decay = ema_decay
        self._averages = list(self.network.parameters())

    def update(self, network: Any, update: int) -> None:
        """Take in the weights after update number `update`, counted from 1."""
        weights = [parameter.detach() for parameter in network.parameters()]
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, weights, 1.0 - ema_decay_at(update, self._ema_decay))

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """The averaged network's prediction for x_t [N, C, H, W] at timesteps [N], of the classes [N] if it has any."""
        prediction: torch.Tensor = self.network(x_t, timesteps, labels).sample
        return prediction


class Learner:
    """A network, its optimizer and its average, on the devices and processes of accelerate.

    Args:
        accelerator: an `accelerate.Accelerator`.
        network: freshly initialized; equal in every process.
        config: of the run.
        objective: what to minimize; its schedule follows `schedule_learner`.
        schedule_learner: where the noise schedule is learned too.

    Attributes:
        ema: the average, kept by the main process only; None elsewhere.
    """

    def __init__(
        self,
        accelerator: Any,
        network: Any,
        config: TrainingConfig,
        objective: Objective,
        schedule_learner: ScheduleLearner | None = None,
    ) -> None:
        self._accelerator, self._config, self._objective = accelerator, config, objective
        self._schedule_learner = schedule_learner
        if schedule_learner is not None:
            objective.set_schedule(schedule_learner.schedule)
        self._draws = Draws(config.seed)
        network = network.to(accelerator.device)
        self.ema = Ema(network, config.ema_decay) if accelerator.is_main_process else None
        optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        network.train()
        self._network, self._optimizer = accelerator.prepare(network, optimizer)
        self._weights = accelerator.unwrap_model(self._network)

    def update(self, step: int, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Update number `step`, counted from 0, with this process's rows of its batch.

        Returns:
            The mean loss of these rows, and the norm of the gradient before clipping; both on the device.
        """
        # Dropout as a function of the step, so that a resumed run drops the same units.
        torch.manual_seed(self._draws.torch_seed(step, self._accelerator.process_index))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self._config)
        device, num_rows = self._accelerator.device, len(batch.timesteps)
        total = torch.zeros((), device=device)
        part_rows = -(-num_rows // self._config.accumulate)
        eps_errors = []
        for first in range(0, num_rows, part_rows):
            rows = slice(first, first + part_rows)
            last = first + part_rows >= num_rows
            labels = None if batch.labels is None else torch.from_numpy(batch.labels[rows]).to(device)
            # Gradients of several processes are averaged once, with the last part.
            with contextlib.nullcontext() if last else self._accelerator.no_sync(self._network):
                measured = self._objective.measure(
                    functools.partial(self._predict, labels=labels),
                    torch.from_numpy(batch.x_start[rows]).to(device),
                    torch.from_numpy(batch.timesteps[rows]).to(device),
                    torch.from_numpy(batch.eps[rows]).to(device),
                )
                loss = measured.losses.sum() / num_rows
                self._accelerator.backward(loss)
            total += loss.detach()
            eps_errors.append(measured.eps_errors)
        grad_norm = self._accelerator.clip_grad_norm_(self._network.parameters(), self._config.gradient_clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self._weights, step + 1)
        learner = self._schedule_learner
        if learner is not None and learner.is_learning(step):
            timesteps = torch.from_numpy(batch.timesteps).to(device)
            if learner.update(step, timesteps, torch.cat(eps_errors)):
                self._objective.set_schedule(learner.schedule)
        return total, grad_norm.detach()

    def first_broken_weight(self) -> str | None:
        """The name of weights, of the network or of its average, that are not finite; None if all are finite."""
        networks = [self._weights] if self.ema is None else [self._weights, self.ema.network]
        for network in networks:
            for name, weight in network.state_dict().items():
                if not torch.isfinite(weight).all():
                    return str(name)
        return None

    def state(self) -> dict[str, Any]:
        """Everything that the next update depends on, as tensors and plain values. Main process only."""
        assert self.ema is not None
        scaler = self._accelerator.scaler
        return {
            "network": self._weights.state_dict(),
            "ema": self.ema.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "schedule": None if self._schedule_learner is None else self._schedule_learner.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, in every process."""
        self._weights.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.network.load_state_dict(state["ema"])
        if self._accelerator.scaler is not None and state["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        if self._schedule_learner is not None:
            self._schedule_learner.load_state(state["schedule"])
            self._objective.set_schedule(self._schedule_learner.schedule)

    def _predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        prediction: torch.Tensor = self._network(x_t, timesteps, labels).sample
        return prediction
