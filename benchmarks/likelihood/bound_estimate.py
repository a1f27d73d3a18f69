"""From weighted terms to bits per dimension, with two different standard errors; and their picture.

Monte-Carlo error: how far the number is from the bound's mean over these images; more evaluations lower it.
Population error: how far it is from the mean over all images of this kind; only more images lower it. It includes the
Monte-Carlo error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.likelihood.timestep_plan import Plan
from commands.errors import require_module
from commands.whole_files import whole_file
from diffusion.bound import bits_per_dim, prior_term
from diffusion.errors import InputError
from diffusion.process import Process

_NUM_BLOCKS = 40
SUFFIXES = (".png", ".pdf", ".svg")


class Estimate(NamedTuple):
    """A mean over images, in bits/dim, and its standard errors; the population's is None for a single image."""

    mean: float
    monte_carlo_error: float
    population_error: float | None

    def report(self) -> dict[str, float | None]:
        """For a JSON file."""
        return {
            "bits_per_dim": self.mean,
            "standard_error_monte_carlo": self.monte_carlo_error,
            "standard_error_population": self.population_error,
        }


def estimate(replicates: np.ndarray, exact: np.ndarray | float = 0.0) -> Estimate:
    """The mean over images.

    Args:
        replicates: float64 [N, R], independent estimates for every image.
        exact: float64 [N] or a number, what is added to each without error.
    """
    num_images, num_replicates = replicates.shape
    of_image = replicates.mean(axis=1) + exact
    monte_carlo = math.sqrt((replicates.var(axis=1, ddof=1) / num_replicates).sum()) / num_images
    population = float(of_image.std(ddof=1) / math.sqrt(num_images)) if num_images > 1 else None
    return Estimate(float(of_image.mean()), monte_carlo, population)


def block_edges(num_train_timesteps: int) -> np.ndarray:
    """Where blocks of timesteps begin, and T: 0 alone, the next ones singly, then ever wider blocks."""
    edges = np.rint(np.geomspace(1, num_train_timesteps, _NUM_BLOCKS)).astype(np.int64)
    return np.unique(np.concatenate([[0], edges]))


@dataclass(frozen=True, eq=False)
class BoundEstimate:
    """The whole bound of one engine.

    Attributes:
        prior: L_T of every image, bits/dim [N]; exact.
        edges: int64 [B + 1], blocks of timesteps.
        blocks: bits/dim [N, R, B], the terms of every block, for every image and replicate.
        counts: int64 [B], evaluations in every block.
    """

    prior: np.ndarray
    edges: np.ndarray
    blocks: np.ndarray
    counts: np.ndarray

    @classmethod
    def from_terms(cls, process: Process, x_start: np.ndarray, plan: Plan, nats: np.ndarray) -> BoundEstimate:
        """Add up what was evaluated.

        Args:
            process: of the engine.
            x_start: float32 [N, C, H, W].
            plan: with M evaluations.
            nats: float64 [M].
        """
        num_elements = process.sample.num_elements
        edges = block_edges(process.schedule.num_train_timesteps)
        image, timestep, _ = plan.evaluations
        block = np.searchsorted(edges, timestep, side="right") - 1
        shape = (plan.num_images, plan.num_replicates, len(edges) - 1)
        cell = np.ravel_multi_index((image, plan.replicate, block), shape)
        sums = np.bincount(cell, plan.weight * bits_per_dim(nats, num_elements), minlength=math.prod(shape))
        counts = np.bincount(block, minlength=shape[2])
        prior = bits_per_dim(prior_term(process.schedule, x_start), num_elements)
        return cls(prior, edges, sums.reshape(shape), counts)

    @property
    def total(self) -> Estimate:
        """L_T + Σ L_{t−1} + L_0."""
        return estimate(self.blocks.sum(axis=2), self.prior)

    def minus(self, other: BoundEstimate) -> Estimate:
        """The difference of two engines on the same draws: its errors are those of the pairs."""
        return estimate((self.blocks - other.blocks).sum(axis=2), self.prior - other.prior)

    def cumulative(self) -> np.ndarray:
        """Share of L_0 + Σ L_{t−1} below every edge, float64 [B + 1]."""
        sums = self.blocks.mean(axis=(0, 1))
        return np.concatenate([[0.0], np.cumsum(sums)]) / sums.sum()

    def half_below(self) -> int:
        """The first edge below which at least half of the bound lies."""
        return int(self.edges[np.argmax(self.cumulative() >= 0.5)])

    def per_timestep(self) -> list[Estimate]:
        """Of every block, the mean term per timestep."""
        widths = np.diff(self.edges)
        return [estimate(self.blocks[:, :, block] / width) for block, width in enumerate(widths)]

    def report(self) -> dict[str, Any]:
        """For a JSON file."""
        terms = {
            "L_T": Estimate(float(self.prior.mean()), 0.0, None),
            "L_1 to L_T-1": estimate(self.blocks[:, :, 1:].sum(axis=2)),
            "L_0": estimate(self.blocks[:, :, 0]),
        }
        return self.total.report() | {
            "terms": {
                name: {"bits_per_dim": term.mean, "standard_error_monte_carlo": term.monte_carlo_error}
                for name, term in terms.items()
            },
            "timesteps": [
                {
                    "first": int(first),
                    "last": int(last) - 1,
                    "bits_per_dim_each": term.mean,
                    "standard_error_monte_carlo": term.monte_carlo_error,
                    "evaluations": int(count),
                }
                for first, last, term, count in zip(
                    self.edges[:-1], self.edges[1:], self.per_timestep(), self.counts, strict=True
                )
            ],
        }


def check_plot_path(path: Path) -> Path:
    """The path, if a picture can be written there. Raises InputError for an unknown suffix.

    Raises ModuleNotFoundError where matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"--plot {path}: found the suffix {path.suffix!r}, expected one of {', '.join(SUFFIXES)}")
    require_module("matplotlib")
    return path


def plot_bound(path: Path, bounds: Sequence[BoundEstimate], names: Sequence[str]) -> None:
    """Draw the terms of the first bound, and if there is a second one the difference, timestep by timestep.

    Args:
        path: of the picture.
        bounds: one, or two over the same draws.
        names: of their engines.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4 if len(bounds) == 1 else 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(bounds), 1, sharex=True, squeeze=False)[:, 0]
    first = bounds[0]
    widths = np.diff(first.edges)
    # The middle of every block; t + 1, the papers' count, because a logarithmic axis has no 0.
    middles = 0.5 * (first.edges[:-1] + first.edges[1:] - 1) + 1.0
    terms = first.per_timestep()
    axes[0].errorbar(
        middles, [term.mean for term in terms], [term.monte_carlo_error for term in terms], fmt=".-", linewidth=1
    )
    axes[0].set(xscale="log", yscale="log", ylabel="bits/dim of each timestep")
    total = first.total
    axes[0].set_title(f"{names[0]}: {total.mean:.4f} ± {total.monte_carlo_error:.4f} bits/dim", fontsize=10)
    share = axes[0].twinx()
    share.step(first.edges[1:], 100.0 * first.cumulative()[1:], where="post", color="0.6", linewidth=1)
    share.set(ylabel="% of the bound up to here", ylim=(0, 101))
    if len(bounds) == 2:
        differences = (first.blocks - bounds[1].blocks) / widths
        pairs = [estimate(differences[:, :, block]) for block in range(len(widths))]
        axes[1].errorbar(
            middles, [pair.mean for pair in pairs], [pair.monte_carlo_error for pair in pairs], fmt=".-", linewidth=1
        )
        axes[1].axhline(0.0, color="0.6", linewidth=1)
        axes[1].set(ylabel=f"more than {names[1]}")
    axes[-1].set(xlabel="t + 1")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
