"""The picture of a report: quality, speed, coverage and likelihood, a panel each."""

from __future__ import annotations

import io
from typing import Any

from benchmarks.report.measures import BUILT_IN, REFERENCE, TABLE, ModelReport, Way

_STYLES = {BUILT_IN: ("C0", "o", "the nearest built-in sampler"), TABLE: ("black", "*", "tables, such as fitted ones")}
_COVERAGES = {"recall": "-", "coverage": "--"}


def draw_measures(report: ModelReport) -> bytes:
    """The four panels as a PNG file's bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    (quality, speed), (coverage, likelihood) = figure.subplots(2, 2)
    reference = next((way for way in report.ways if way.kind == REFERENCE), None)
    for kind, (color, marker, label) in _STYLES.items():
        ways = [way for way in report.ways if way.kind == kind]
        if not ways:
            continue
        style: dict[str, Any] = {
            "color": color,
            "marker": marker,
            "markersize": 9 if marker == "*" else 5,
            "linewidth": 1,
        }
        heights, errors = zip(*(_height(way, reference) for way in ways), strict=True)
        quality.errorbar([way.calls for way in ways], heights, yerr=errors, capsize=2, label=label, **style)
        for measure, line in _COVERAGES.items():
            known = [way for way in ways if measure in way.measures]
            if known:
                values = [way.measures[measure] for way in known]
                name = f"{measure}, {label}"
                coverage.plot([way.calls for way in known], values, linestyle=line, label=name, **style)
        timed = [way for way in ways if way.images_per_second is not None]
        if timed:
            of_timed = [_height(way, reference)[0] for way in timed]
            speed.plot([way.images_per_second for way in timed], of_timed, label=label, **style)
    over = ""
    if reference is not None:
        over = " over the reference's"
        quality.axhline(1.0, color="gray", linewidth=1, label=f"{reference.name}, {reference.calls} calls")
        if reference.images_per_second is not None:
            speed.plot(
                [reference.images_per_second], [1.0], color="gray", marker="s", linestyle="none", label="reference"
            )
        for measure, line in _COVERAGES.items():
            if measure in reference.measures:
                label = f"{measure}, {reference.calls} calls"
                coverage.axhline(reference.measures[measure], color="gray", linewidth=1, linestyle=line, label=label)
    quality.set(title=f"Quality: Fréchet distance{over}", xlabel="network calls", yscale="log")
    speed.set(title=f"Speed: Fréchet distance{over}, by images/s", xlabel="images/s", xscale="log", yscale="log")
    coverage.set(title="Coverage: recall, and coverage of neighborhoods", xlabel="network calls", ylim=(0, 1))
    for axes in (quality, coverage):
        _ticks_at_calls(axes, report.ways)
    for axes in (quality, speed):
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    _draw_likelihood(likelihood, report)
    for axes in (quality, speed, coverage):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def _height(way: Way, reference: Way | None) -> tuple[float, float]:
    """The distance over the reference's, or the distance itself where there is none; and its standard error."""
    if reference is None or way.ratio is None:
        return way.frechet, way.frechet_se or 0.0
    return way.ratio, way.ratio_se or 0.0


def _ticks_at_calls(axes: Any, ways: list[Way]) -> None:
    calls = sorted({way.calls for way in ways if way.kind != REFERENCE})
    if calls:
        axes.set_xscale("log")
        axes.set_xticks(calls, [str(count) for count in calls])
        axes.set_xticks([], minor=True)


def _draw_likelihood(axes: Any, report: ModelReport) -> None:
    likelihood = report.likelihood
    groups = [] if likelihood is None else [group for group in likelihood.timesteps if group[2] > 0.0]
    if likelihood is None or not groups:
        axes.set_title("Likelihood: not measured" + (", by timestep" if likelihood else ""))
        axes.set_axis_off()
        return
    middles = [(first + last) / 2.0 + 1.0 for first, last, _ in groups]  # t = 0 has no place on a log scale
    axes.plot(middles, [each for _, _, each in groups], marker=".", linewidth=1, color="C2")
    axes.set(
        title=f"Likelihood: {likelihood.bits_per_dim:.3f} bits/dim, by timestep",
        xlabel="timestep + 1",
        ylabel="bits/dim of one timestep",
        xscale="log",
        yscale="log",
    )
