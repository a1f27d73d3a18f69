"""The picture of a report: quality, speed, coverage and likelihood, a panel each."""

from __future__ import annotations

import io
from typing import Any

from benchmarks.report.measures import BUILT_IN, REFERENCE, TABLE, ModelReport, Way

_STYLES = {BUILT_IN: ("C0", "o", "the nearest built-in sampler"), TABLE: ("black", "*", "tables, such as fitted ones")}


def draw_measures(report: ModelReport) -> bytes:
    """The four panels as a PNG file's bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    (quality, speed), (coverage, likelihood) = figure.subplots(2, 2)
    reference = next(way for way in report.ways if way.kind == REFERENCE)
    for kind, (color, marker, label) in _STYLES.items():
        ways = [way for way in report.ways if way.kind == kind]
        if not ways:
            continue
        calls = [way.calls for way in ways]
        quality.errorbar(
            calls, [way.ratio for way in ways], yerr=[way.ratio_se or 0.0 for way in ways], color=color,
            marker=marker, markersize=9 if marker == "*" else 5, linewidth=1, capsize=2, label=label,
        )  # fmt: skip
        for measure, line in (("recall", "-"), ("coverage", "--")):
            known = [way for way in ways if measure in way.measures]
            if known:
                coverage.plot(
                    [way.calls for way in known], [way.measures[measure] for way in known], color=color, marker=marker,
                    markersize=9 if marker == "*" else 5, linestyle=line, linewidth=1, label=f"{measure}, {label}",
                )  # fmt: skip
        timed = [way for way in ways if way.images_per_second is not None]
        if timed:
            speed.plot(
                [way.images_per_second for way in timed], [way.ratio for way in timed], color=color, marker=marker,
                markersize=9 if marker == "*" else 5, linewidth=1, label=label,
            )  # fmt: skip
    quality.axhline(1.0, color="gray", linewidth=1, label=f"{reference.name}, {reference.calls} calls")
    quality.set(title="Quality: Fréchet distance over the reference's", xlabel="network calls", yscale="log")
    _ticks_at_calls(quality, report.ways)
    if reference.images_per_second is not None:
        speed.plot([reference.images_per_second], [1.0], color="gray", marker="s", linestyle="none", label="reference")
    speed.set(title="Speed: quality against images per second", xlabel="images/s", xscale="log", yscale="log")
    for measure, line in (("recall", "-"), ("coverage", "--")):
        if measure in reference.measures:
            label = f"{measure}, {reference.calls} calls"
            coverage.axhline(reference.measures[measure], color="gray", linewidth=1, linestyle=line, label=label)
    coverage.set(title="Coverage: recall, and coverage of neighborhoods", xlabel="network calls", ylim=(0, 1))
    _ticks_at_calls(coverage, report.ways)
    _draw_likelihood(likelihood, report)
    for axes in (quality, speed, coverage):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def _ticks_at_calls(axes: Any, ways: list[Way]) -> None:
    calls = sorted({way.calls for way in ways if way.kind != REFERENCE})
    if calls:
        axes.set_xscale("log")
        axes.set_xticks(calls, [str(count) for count in calls])
        axes.set_xticks([], minor=True)


def _draw_likelihood(axes: Any, report: ModelReport) -> None:
    likelihood = report.likelihood
    if likelihood is None:
        axes.set_title("Likelihood: not measured")
        axes.set_axis_off()
        return
    groups = [group for group in likelihood.timesteps if group[2] > 0.0]
    middles = [(first + last) / 2.0 + 1.0 for first, last, _ in groups]  # t = 0 has no place on a log scale
    axes.plot(middles, [each for _, _, each in groups], marker=".", linewidth=1, color="C2")
    axes.set(
        title=f"Likelihood: {likelihood.bits_per_dim:.3f} bits/dim, by timestep",
        xlabel="timestep + 1",
        ylabel="bits/dim of one timestep",
        xscale="log",
        yscale="log",
    )
