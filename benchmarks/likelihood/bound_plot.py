"""The bound's terms over timesteps as a picture, and below them what another engine makes of the same terms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.likelihood.bound_estimate import BoundEstimate, estimate
from commands.errors import require_module
from commands.whole_files import whole_file
from diffusion.errors import InputError

SUFFIXES = (".png", ".pdf", ".svg")


def check_plot_path(path: Path) -> Path:
    """The path, if a picture can be written there. Raises InputError for a suffix of no known format.

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
