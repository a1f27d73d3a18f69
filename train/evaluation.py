"""What the network has learned: the held-out loss on the way, a grid of samples at the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffusion.process import Process
from diffusion.samplers import make_table
from diffusion.step_table import COLUMNS
from train.batches import Draws
from train.image_set import ImageSet
from train.objective import Objective

# Enough for a steady mean over timesteps, few enough to cost little beside the training steps.
NUM_EVALUATIONS = 1024
_SEED = 0


class HeldOutLoss:
    """The mean loss over `NUM_EVALUATIONS` pairs of a held-out image and a timestep.

    Timesteps are spread evenly over 0 … T−1; the noise belongs to the pair's number, not to the run's seed.

    Args:
        images: held-out ones, each used about equally often.
        objective: what to average.
        num_train_timesteps: T.
        batch_size: how many pairs at a time.
        device: where the network is.
    """

    def __init__(
        self,
        images: ImageSet,
        objective: Objective,
        num_train_timesteps: int,
        batch_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._images, self._objective, self._device = images, objective, device
        self._num_train_timesteps, self._batch_size = num_train_timesteps, batch_size

    def __call__(self, network: Any) -> float:
        """The loss of `network`: from x_t, timesteps and, where the images have classes, those, to the prediction."""
        draws, total = Draws(_SEED), 0.0
        chw = self._images.shape.chw
        for first in range(0, NUM_EVALUATIONS, self._batch_size):
            pairs = np.arange(first, min(first + self._batch_size, NUM_EVALUATIONS))
            timesteps = (2 * pairs + 1) * self._num_train_timesteps // (2 * NUM_EVALUATIONS)
            # Shuffled: a set sorted by class would tie class to timestep.
            indices = [draws.image_index(int(pair), self._images.num_images) for pair in pairs]
            x_start = self._images.x_start(indices)
            predict = network
            if self._images.labels is not None:
                labels = torch.from_numpy(self._images.labels.of_image[indices]).to(self._device)
                predict = functools.partial(network, labels=labels)
            eps = np.stack([draws.image(int(pair), self._num_train_timesteps, chw).eps for pair in pairs])
            with torch.no_grad():
                losses = self._objective.per_sample(
                    predict,
                    torch.from_numpy(x_start).to(self._device),
                    torch.from_numpy(timesteps).to(self._device),
                    torch.from_numpy(eps).to(self._device),
                )
            total += float(losses.double().sum())
        return total / NUM_EVALUATIONS


def sample(
    network: Callable[..., torch.Tensor],
    process: Process,
    num: int,
    seed: int,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    on_step: Callable[[], None] = lambda: None,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """`num` samples by Algorithm 2 over all timesteps, float32 [num, C, H, W], about in [−1, 1].

    The rows are those of `diffusion.samplers.ddpm`, so every prediction and variance type takes the same path.

    Args:
        network: from x_t [N, C, H, W], timesteps [N] and labels [N], if there are any, to the prediction,
            [N, C or 2C, H, W].
        process: schedule, prediction, variance and clip.
        num: samples.
        seed: of the noise.
        device: where the network is.
        batch_size: samples per call of the network.
        on_step: called after every step of every batch; may raise to stop.
        labels: int64 [num], the class of each sample.
    """
    table = make_table(process)
    channels, draws = process.sample.channels, Draws(seed)
    x = torch.from_numpy(draws.sampling_noise(0, (num, *process.sample.chw))).to(device)
    for t, coefficients in zip(table.timesteps.tolist(), table.cast().tolist(), strict=True):
        row = dict(zip(COLUMNS, coefficients, strict=True))
        noise = torch.from_numpy(draws.sampling_noise(t + 1, tuple(x.shape))).to(device) if row["s"] else None
        for first in range(0, num, batch_size):
            x_t = x[first : first + batch_size]
            classes = [] if labels is None else [torch.from_numpy(labels[first : first + batch_size]).to(device)]
            with torch.no_grad():
                prediction = network(x_t, torch.full((len(x_t),), t, device=device), *classes).float()
            p, w = prediction[:, :channels], prediction[:, channels:]
            x_start = (row["u"] * x_t + row["v"] * p).clamp(-table.clip, table.clip)
            x_prev = row["a"] * x_t + row["q"] * p + row["b"] * x_start
            if noise is not None:
                noise_std = row["s"] * torch.exp(row["k"] * w) if table.learned else row["s"]
                x_prev += noise_std * noise[first : first + batch_size]
            x[first : first + batch_size] = x_prev
            on_step()
    return np.asarray(x.cpu().numpy())


def grid_labels(num_classes: int, num: int) -> tuple[np.ndarray, int]:
    """Classes of the samples of a grid with a row for each, as many of them as there are samples for.

    Returns:
        int64 [rows · columns], at most `num`; and the columns.
    """
    rows = min(num_classes, num)
    columns = num // rows
    return np.repeat(np.arange(rows, dtype=np.int64), columns), columns
