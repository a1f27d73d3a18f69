"""The loop for small networks: Adam, a cosine for the learning rate, averaged weights; a minute on two cores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from commands.progress import progress_bar
from diffusion.errors import InputError
from train.learner import DECAYS, Ema
from train.mlp import Mlp

WARMUP_STEPS = 50
EMA_PART = 0.05
"""The average reaches back over this part of the run: weights from before are far from the last ones."""


@dataclass(frozen=True)
class MlpTraining:
    """How long and how fast.

    Attributes:
        steps: updates of the weights.
        batch_size: samples per update.
        learning_rate: the highest; `WARMUP_STEPS` of linear growth lead to it, half a cosine takes it to 0.
    """

    steps: int
    batch_size: int
    learning_rate: float


def train_mlp(network: Mlp, loss: Callable[[Mlp], torch.Tensor], training: MlpTraining, description: str) -> Mlp:
    """Minimize, and return the network with averaged weights.

    On one thread: layers this small gain nothing from a second, and sums do not depend on the number of threads.

    Args:
        network: changed in place; the one that is returned is another.
        loss: of the network on a fresh batch, a scalar; called once per step.
        training: how.
        description: for the progress bar.

    Raises:
        InputError: the loss, or a weight at the end, is no finite number.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(network, loss, training, description)
    finally:
        torch.set_num_threads(num_threads)


def _train(network: Mlp, loss: Callable[[Mlp], torch.Tensor], training: MlpTraining, description: str) -> Mlp:
    optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate, fused=True)
    ema = Ema(network, max(0.0, 1.0 - 1.0 / (EMA_PART * training.steps)))
    with progress_bar(training.steps, description, unit="step", lines_in_a_log=True) as bar:
        for step in range(training.steps):
            for group in optimizer.param_groups:
                warmup = min(1.0, (step + 1) / WARMUP_STEPS)
                group["lr"] = training.learning_rate * warmup * DECAYS["cosine"](step / training.steps)
            optimizer.zero_grad(set_to_none=True)
            value = loss(network)
            value.backward()
            if not math.isfinite(number := float(value.detach())):
                raise InputError(
                    f"the loss is {number} at step {step + 1:,}, expected a finite number: training diverged; "
                    "choose another --seed"
                )
            optimizer.step()
            ema.update(network, step + 1)
            bar.update()
            if step % 100 == 0:
                bar.set_postfix_str(f"loss {number:.4f}", refresh=False)
    averaged: Mlp = ema.network
    # A loss is that of the weights before its update.
    if not all(torch.isfinite(weight).all() for weight in averaged.state_dict().values()):
        raise InputError("the weights are not finite after the last step: training diverged; choose another --seed")
    return averaged
