"""The page of a report, as HTML in one file and as Markdown with its pictures beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from benchmarks.report.measures import ModelReport, Way

_COLUMNS = (
    "way to sample", "network calls", "Fréchet distance", "over the reference's", "precision", "density", "recall",
    "coverage", "distance of the classes' shares", "images/s",
)  # fmt: skip
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:.9rem}th,td{padding:.25rem .6rem;border-bottom:1px solid #ccc;text-align:right}
th{vertical-align:bottom}th:first-child,td:first-child{text-align:left}img{max-width:100%}
code{font-size:.85rem;overflow-wrap:anywhere}figure{margin:1rem 0}figcaption{font-size:.9rem}"""
Picture = tuple[str, str, bytes]
"""A caption, the name of a file, and its bytes."""


def as_html(report: ModelReport, pictures: Sequence[Picture]) -> str:
    """One file that needs no other: pictures are in it."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in _COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(way)) + "</tr>\n" for way in report.ways
    )
    figures = "".join(
        f'<figure><img alt="{html.escape(caption)}" src="data:image/{name.rpartition(".")[2]};base64,'
        f'{base64.b64encode(content).decode("ascii")}"><figcaption>{html.escape(caption)}</figcaption></figure>\n'
        for caption, name, content in pictures
    )
    sources = "".join(
        f"<li>{html.escape(name)}: <code>{html.escape(command)}</code>, commit {html.escape(commit[:12])}, "
        f"{html.escape(cpu)}</li>\n"
        for name, command, commit, cpu in report.sources
    )
    title = html.escape(_title(report))
    paragraphs = "".join(f"<p>{html.escape(text)}</p>\n" for text in _paragraphs(report))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"</head><body>\n<h1>{title}</h1>\n{paragraphs}<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody>"
        f"</table>\n{figures}<h2>Sources</h2>\n<ul>\n{sources}</ul>\n</body></html>\n"
    )


def as_markdown(report: ModelReport, pictures: Sequence[Picture], folder: str) -> str:
    """A page whose pictures lie in `folder` beside it."""
    lines = [f"# {_text(_title(report))}", ""]
    for text in _paragraphs(report):
        lines += [_text(text), ""]
    lines += [_row(_COLUMNS), "|---|" + "---:|" * (len(_COLUMNS) - 1), *(_row(_cells(way)) for way in report.ways), ""]
    for caption, name, _ in pictures:
        lines += [f"![{_text(caption)}]({folder}/{name})", ""]
    lines += ["## Sources", ""]
    for name, command, commit, cpu in report.sources:
        code = " ".join(command.replace("`", "").split())
        lines.append(f"- {_text(name)}: `{code}`, commit {_text(commit[:12])}, {_text(cpu)}")
    return "\n".join(lines) + "\n"


def _title(report: ModelReport) -> str:
    return f"Quality, speed, coverage and likelihood: {report.data}"


def _paragraphs(report: ModelReport) -> list[str]:
    texts = [
        f"Checkpoint {report.checkpoint_sha256}. Distances to the data are in these features: {report.features}; means "
        f"over {report.seeds} seeds of {report.num:,} samples each, from equal x_T. Precision and density say how much "
        "of what is drawn looks real; recall, coverage and the classes' shares how much of the data is drawn. images/s "
        "is as the first of the sources that timed it has it.",
    ]
    likelihood = report.likelihood
    if likelihood is None:
        return [*texts, "The likelihood was not measured."]
    errors = f"± {likelihood.monte_carlo_error:.4f} Monte Carlo"
    if likelihood.population_error is not None:
        errors += f", ± {likelihood.population_error:.4f} over images"
    return [
        *texts,
        f"Likelihood: at most {likelihood.bits_per_dim:.4f} bits/dim ({errors}) of {likelihood.images:,} images of "
        f"{likelihood.data}. It belongs to the network and its process; no way to sample changes it.",
    ]


def _cells(way: Way) -> tuple[str, ...]:
    measured = [
        f"{way.measures[name]:.3f}" if name in way.measures else "–"
        for name in ("precision", "density", "recall", "coverage", "class_total_variation")
    ]
    return (
        f"{way.name} ({way.kind})",
        f"{way.calls:,}",
        _with_error(way.frechet, way.frechet_se, 5),
        _with_error(way.ratio, way.ratio_se, 3),
        *measured,
        "–" if way.images_per_second is None else f"{way.images_per_second:,.3g}",
    )


def _with_error(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _text(text: str) -> str:
    """Escaped for Markdown, in one line: names of files and tables are the user's."""
    line = " ".join(text.split())
    return "".join(f"\\{character}" if character in r"\`*_[]<>|#" else character for character in line)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_text, cells)) + " |"
