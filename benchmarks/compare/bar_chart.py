"""Speed-ups of peers as horizontal bars, one panel per batch size."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from commands.whole_files import whole_file

OURS, THEIRS = "#1f6feb", "#9aa4af"
# What fits above one panel: a longer title would be cut off.
_LETTERS_PER_PANEL = 70


def draw_bars(results: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw `speedup` of every entry, ours in color, and save the picture whole."""
    batch_sizes = sorted({entry["batch_size"] for entry in results})
    figure, panels = pyplot.subplots(
        1, len(batch_sizes), figsize=(5.5 * len(batch_sizes), 3.6), squeeze=False, sharey=True, layout="constrained"
    )
    for panel, batch_size in zip(panels[0], batch_sizes, strict=True):
        entries = [entry for entry in results if entry["batch_size"] == batch_size][::-1]
        colors = [OURS if entry["peer"].startswith("ours") else THEIRS for entry in entries]
        bars = panel.barh([entry["peer"] for entry in entries], [entry["speedup"] for entry in entries], color=colors)
        panel.bar_label(bars, [f"{entry['speedup']:.2f}" for entry in entries], padding=3)
        panel.set_title(f"batch {batch_size}")
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(textwrap.fill(title, _LETTERS_PER_PANEL * len(batch_sizes)), fontsize=10)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
