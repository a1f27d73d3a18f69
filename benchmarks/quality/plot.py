"""The picture of a quality measurement: distance to the data against network calls."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.conclusions import WITHIN
from benchmarks.quality.results import SCREENING_SEED
from commands.whole_files import whole_file

_MARKERS = "osD^vPX<>h"
_SIZES = {"*": 9}
_TABLES = "tables given, such as fitted ones"


def draw_quality(report: dict[str, Any], path: Path) -> None:
    """Draw three panels: samplers with their best spacing, spacings with their best sampler, precision and recall.

    Distances are drawn as ratios to those of Algorithm 2 with every timestep on the same seeds, because a seed's
    x_T moves both; without that reference as they are. A configuration that was measured once, to choose which to
    measure again, is drawn hollow.

    Args:
        report: as `benchmarks.quality` writes it.
        path: of the picture; its suffix says the format.

    Raises:
        InputError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout="constrained")
    by_sampler, by_spacing, manifold = figure.subplots(1, 3)
    reference, screening = report.get("reference"), report.get("screening_frechet")
    total = report["setup"]["process"]["schedule"]["num_train_timesteps"]
    entries = [entry for entry in report["results"] if entry["runs"]]
    fewer = [entry for entry in entries if entry["calls"] < total]
    distances: dict[int, float] = {}
    if reference:
        place = (reference["sampler"], reference["calls"])
        built_in = [entry for entry in entries if "table_sha256" not in entry]
        # Of an earlier version there may be several, with other spacings that choose the same timesteps.
        runs = next(entry["runs"] for entry in built_in if (entry["sampler"], entry["calls"]) == place)
        distances = {run["seed"]: run["frechet"] for run in runs}
    points = [_Point.of(entry, distances, report["seeds"], screening) for entry in fewer]
    shown = [point for point in points if not math.isnan(point.ratio)]
    for axes, by in ((by_sampler, "sampler"), (by_spacing, "spacing")):
        _lines(axes, shown, by)
        if reference:
            label = f"{reference['sampler']}, {reference['calls']} calls (and 5 % more)"
            axes.axhline(1.0, color="black", linewidth=1, label=label)
            axes.axhspan(1.0, WITHIN, color="black", alpha=0.15, linewidth=0)
        floor = report["floor"]["train_resampled"]["frechet"] / (reference["frechet"] if reference else 1.0)
        axes.axhline(floor, color="gray", linestyle=":", label="as many real images, resampled")
        over = " / that of the reference" if reference else ""
        axes.set(xscale="log", yscale="log", xlabel="network calls", ylabel=f"Fréchet distance{over}")
        _plain_ticks(axes, {entry["calls"] for entry in fewer})
        # Distances fall to the right, and the floor of real images is far below them.
        axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0.0, 0.06), ncols=2)
        _add_seconds(axes, report.get("timing"), {entry["calls"] for entry in fewer})
    by_sampler.set_title("each sampler with its best spacing")
    by_spacing.set_title("each spacing with its best sampler")
    _manifold(manifold, report, fewer)
    name = report["setup"]["features"]["name"]
    data, num, seeds = report["setup"]["data"]["name"], report["setup"]["num"], len(report["seeds"])
    figure.suptitle(
        f"{data}, n = {num}; features: {name}\nfilled: mean of {seeds} seeds, with standard error; "
        f"hollow: one seed, n = {report['setup']['screening_num']}",
        fontsize=10,
    )
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


@dataclass(frozen=True)
class _Point:
    """A configuration in the picture: its distance over the reference's, and whether more than one seed says so."""

    sampler: str
    spacing: str
    calls: int
    ratio: float
    error: float | None
    judged: bool

    @classmethod
    def of(
        cls, entry: dict[str, Any], reference: dict[int, float], seeds: list[int], screening: float | None
    ) -> _Point:
        """The ratio on the seeds that judge; for an entry without them that on the screening seed, NaN if unknown.

        Args:
            entry: of the report's results.
            reference: its distances by seed; none: the distance itself stands for the ratio.
            seeds: that judge.
            screening: the reference's distance with the screening seed.
        """
        names = (*_names(entry), entry["calls"])
        ours = {run["seed"]: run["frechet"] for run in entry["runs"]}
        if not entry["judged"]:
            known = screening is not None and SCREENING_SEED in ours
            return cls(*names, ours[SCREENING_SEED] / screening if known else math.nan, None, False)
        mean = statistics.fmean(reference[seed] for seed in seeds) if reference else 1.0
        differences = [ours[seed] - reference.get(seed, 0.0) for seed in seeds]
        error = statistics.stdev(differences) / math.sqrt(len(seeds)) / mean if len(seeds) > 1 else None
        return cls(*names, bool(reference) + statistics.fmean(differences) / mean, error, True)


def _names(entry: dict[str, Any]) -> tuple[str, str]:
    """Sampler and spacing; all tables of the user's stand under one name."""
    return (_TABLES, _TABLES) if "table_sha256" in entry else (entry["sampler"], entry["spacing"])


def _lines(axes: Any, points: list[_Point], by: str) -> None:
    """One line for each value of `by`: at each number of calls the point with the smallest ratio."""
    groups: dict[str, dict[int, list[_Point]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        groups[getattr(point, by)][point.calls].append(point)
    for place, (name, by_calls) in enumerate(sorted(groups.items())):
        nearest = [min(by_calls[count], key=lambda point: point.ratio) for count in sorted(by_calls)]
        color, marker = f"C{place}", _MARKERS[place % len(_MARKERS)]
        if name == _TABLES:
            color, marker = "black", "*"
        axes.plot([p.calls for p in nearest], [p.ratio for p in nearest], color=color, linewidth=1, alpha=0.7)
        for point in nearest:
            axes.errorbar(
                point.calls, point.ratio, yerr=point.error, color=color, capsize=2, marker=marker,
                markersize=_SIZES.get(marker, 5), markerfacecolor=color if point.judged else "white",
            )  # fmt: skip
        axes.plot([], [], color=color, marker=marker, markersize=_SIZES.get(marker, 5), label=name)


def _manifold(axes: Any, report: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    """Precision, recall, coverage and classes of the nearest built-in entry at each number of calls, and of tables."""
    judged = [entry for entry in entries if entry["judged"]]
    built_in = _nearest([entry for entry in judged if "table_sha256" not in entry])
    tables = _nearest([entry for entry in judged if "table_sha256" in entry])
    reference = report.get("reference", {})
    measures = {
        "precision": "precision",
        "recall": "recall",
        "coverage": "coverage",
        "class_total_variation": "distance of the classes' shares",
    }
    for place, (measure, label) in enumerate(measures.items()):
        for shown, marker, line in ((built_in, "o", "-"), (tables, "*", "none")):
            known = [entry for entry in shown if measure in entry]
            if not known:
                continue
            axes.errorbar(
                [entry["calls"] for entry in known], [entry[measure] for entry in known],
                yerr=[entry[f"{measure}_se"] or 0.0 for entry in known], color=f"C{place}", marker=marker,
                markersize=_SIZES.get(marker, 4), linestyle=line, capsize=2, label=label if marker == "o" else None,
            )  # fmt: skip
        if measure in reference:
            axes.axhline(reference[measure], color=f"C{place}", linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel="network calls", ylim=(0, 1))
    stars = "; stars: tables" if tables else ""
    axes.set_title(f"the best at each number of calls; dashed: {reference.get('calls', 'all')} calls{stars}")
    if built_in:
        _plain_ticks(axes, {entry["calls"] for entry in built_in})
        axes.legend(fontsize=7)


def _nearest(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At each number of calls the entry with the smallest distance."""
    by_calls: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        by_calls[entry["calls"]].append(entry)
    return [min(by_calls[count], key=lambda entry: entry["frechet"]) for count in sorted(by_calls)]


def _plain_ticks(axes: Any, calls: set[int]) -> None:
    shown = _far_apart(calls)
    axes.set_xticks(shown, [str(count) for count in shown])
    axes.set_xticks([], minor=True)


def _far_apart(calls: set[int]) -> list[int]:
    """Of numbers too close for their labels, the smaller ones."""
    shown: list[int] = []
    for count in sorted(calls):
        if not shown or count >= 1.25 * shown[-1]:
            shown.append(count)
    return shown


def _add_seconds(axes: Any, timing: dict[str, Any] | None, calls: set[int]) -> None:
    """A second scale on top: calls in seconds. A call costs the same whatever the sampler, so one scale is enough."""
    if timing is None:
        return
    seconds = timing["network_ms_per_call"] / 1e3
    top = axes.secondary_xaxis("top", functions=(lambda calls: calls * seconds, lambda time: time / seconds))
    top.set_xlabel(f"seconds for a batch of {timing['batch_size']}", fontsize=8)
    shown = _far_apart(calls)
    top.set_xticks([count * seconds for count in shown], [f"{count * seconds:.2g}" for count in shown], fontsize=7)
    top.set_xticks([], minor=True)
