"""What the results of the measurements say of one model: quality, speed, coverage and likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.samples import method_of
from commands.errors import reason
from diffusion.errors import InputError
from diffusion.json_text import read_json

REFERENCE, BUILT_IN, TABLE = "reference", "built-in", "table"
_LARGEST = 1e12
_OF_OTHER_FILES = (KeyError, TypeError, AttributeError, ValueError, ArithmeticError)


@dataclass(frozen=True)
class Way:
    """One way to sample the model, with what it costs and what it reaches.

    Attributes:
        kind: `REFERENCE`, Algorithm 2 with every timestep; `BUILT_IN`, the nearest built-in sampler at its number of
            calls; `TABLE`, the nearest table that was given.
        name: sampler and spacing, or the table.
        calls: of the network.
        frechet, frechet_se: distance to the data, and its standard error over seeds.
        ratio, ratio_se: over the reference's, whose own is 1; None without a reference.
        measures: `precision`, `recall`, `density`, `coverage`, `class_total_variation`, where they were measured.
        images_per_second: in batches, as the first of the files that has a timing says; None where none has.
        table_sha256: of a table's rows, since others may have its name; None for the rest.
    """

    kind: str
    name: str
    calls: int
    frechet: float
    frechet_se: float | None
    ratio: float | None
    ratio_se: float | None
    measures: dict[str, float]
    images_per_second: float | None
    table_sha256: str | None


@dataclass(frozen=True)
class Likelihood:
    """The variational bound of the model; it belongs to the network and the process, not to a way to sample.

    Attributes:
        data: that it was measured on.
        images: how many.
        bits_per_dim, monte_carlo_error, population_error: the bound and its standard errors.
        timesteps: (first, last, bits/dim of each timestep) of every group of timesteps.
    """

    data: str
    images: int
    bits_per_dim: float
    monte_carlo_error: float
    population_error: float | None
    timesteps: list[tuple[int, int, float]]


@dataclass(frozen=True)
class ModelReport:
    """Everything that is known of one checkpoint.

    Attributes:
        checkpoint_sha256: which.
        data: that it was trained on, as the quality was measured against it.
        features, num, seeds: how distances were measured.
        ways: ordered by number of calls, the reference last.
        likelihood: None where it was not measured.
        sources: for every file its name, command, commit and processor.
    """

    checkpoint_sha256: str
    data: str
    features: str
    num: int
    seeds: int
    ways: list[Way]
    likelihood: Likelihood | None
    sources: list[tuple[str, str, str, str]]


def read_results(quality: Sequence[Path], likelihood: Path | None) -> ModelReport:
    """Read results of `benchmarks.quality` and, if given, one of `benchmarks.likelihood`.

    Raises:
        InputError: no such file, a file of something else, or files of different models, data, features or numbers of
            samples, whose figures do not belong on one page.
    """
    ways: dict[tuple[str, str, int, str | None], Way] = {}
    sources, first, timing = [], None, None
    for path in quality:
        report = _read(path)
        try:
            found = _quality_identity(report)
            first = first or (path, found)
            for name, value in found.items():
                if value != first[1][name]:
                    raise InputError(
                        f"its {name} is {value}, but that of {first[0]} is {first[1][name]}; expected results of one "
                        "model, measured alike"
                    )
            timing = timing or report.get("timing")  # one for all: machines differ, and what else they were doing
            for way in _ways(report, timing):
                place = (way.kind, way.name, way.calls, way.table_sha256)
                if place not in ways or len(way.measures) > len(ways[place].measures):
                    ways[place] = way
            sources.append(_source(path, report))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except _OF_OTHER_FILES as error:
            raise InputError(f"{path}: no result of `benchmarks.quality` ({reason(error)})") from None
    if first is None:
        raise InputError("no result of `benchmarks.quality` was given, expected at least one")
    identity, of_model = first[1], None
    if likelihood is not None:
        report = _read(likelihood)
        try:
            of_model = _likelihood(report)
            checkpoint = report.get("checkpoint_sha256")
            sources.append(_source(likelihood, report))
        except _OF_OTHER_FILES as error:
            raise InputError(f"{likelihood}: no result of `benchmarks.likelihood` ({reason(error)})") from None
        if checkpoint is None or checkpoint != identity["checkpoint"]:
            raise InputError(
                f"{likelihood}: its checkpoint is {checkpoint or 'not named'}, but that of {first[0]} is "
                f"{identity['checkpoint']}; measure this model's with `python -m benchmarks.likelihood`"
            )
    order = {BUILT_IN: 0, TABLE: 1, REFERENCE: 2}
    return ModelReport(
        identity["checkpoint"],
        identity["data"],
        identity["features"],
        identity["num"],
        len(identity["seeds"]),
        sorted(ways.values(), key=lambda way: (way.kind == REFERENCE, way.calls, order[way.kind])),
        of_model,
        sources,
    )


def _read(path: Path) -> dict[str, Any]:
    fields = read_json(path, "give a result of `benchmarks.quality` or `benchmarks.likelihood`")
    if not isinstance(fields, dict):
        raise InputError(f"{path}: found no JSON object, expected a result of a measurement")
    return fields


def _quality_identity(report: dict[str, Any]) -> dict[str, Any]:
    setup = report["setup"]
    checkpoint = setup["process"].get("checkpoint_sha256")
    if not isinstance(checkpoint, str):
        raise InputError("its engine does not name its checkpoint, so nothing else can be told to belong to it")
    return {
        "checkpoint": checkpoint,
        "data": f"{setup['data']['name']}, {setup['data']['num_train']:,} images",
        "data_sha256": setup["data"]["sha256"],
        "features": setup["features"]["name"],
        "features_sha256": setup["features"]["sha256"],
        "num": int(setup["num"]),
        "seeds": list(report["seeds"]),
    }


def _ways(report: dict[str, Any], timing: dict[str, Any] | None) -> list[Way]:
    entries = {
        (entry["sampler"], entry["spacing"], entry["calls"], entry.get("table_sha256")): entry
        for entry in report["results"]
    }
    found = []
    if "reference" in report:
        reference = report["reference"]
        found.append(_way(report, timing, REFERENCE, reference["sampler"], reference, {"ratio": 1.0, "ratio_se": None}))
    for key, compared in report.items():
        kind = BUILT_IN if key.startswith("best_at_") else TABLE if key.startswith("table_at_") else None
        if kind is None:
            continue
        place = (compared["sampler"], compared["spacing"], compared["calls"], compared.get("table_sha256"))
        name = compared["sampler"] if kind == TABLE else f"{compared['sampler']}, {compared['spacing']}"
        found.append(_way(report, timing, kind, name, entries[place], compared))
    return found


def _way(
    report: dict[str, Any],
    timing: dict[str, Any] | None,
    kind: str,
    name: str,
    entry: dict[str, Any],
    compared: dict[str, Any],
) -> Way:
    measures = ["precision", "recall", "density", "coverage"]
    if report["setup"].get("classifier") is not None:  # else the classes are those of the features' own network
        measures.append("class_total_variation")
    calls, per_second = int(entry["calls"]), None
    if timing is not None:
        method = method_of(str(entry["sampler"]))
        ms_per_call = timing["ms_per_call"].get(method, timing["network_ms_per_call"])
        per_second = _figure(timing["batch_size"] / (float(ms_per_call) / 1e3 * calls))
    return Way(
        kind,
        name,
        calls,
        _figure(entry["frechet"]),
        _optional(entry["frechet_se"]),
        _optional(compared.get("ratio")),
        _optional(compared.get("ratio_se")),
        {measure: _figure(entry[measure]) for measure in measures if measure in entry},
        per_second,
        entry.get("table_sha256"),
    )


def _optional(value: float | None) -> float | None:
    return None if value is None else _figure(value)


def _figure(value: float) -> float:
    """A measure, a ratio or a standard error, that can be drawn. Raises ValueError for any other number."""
    figure = float(value)
    if not 0.0 <= figure < _LARGEST:
        raise ValueError(f"found the figure {figure:g}, expected at least 0 and below {_LARGEST:g}")
    return figure


def _likelihood(report: dict[str, Any]) -> Likelihood:
    return Likelihood(
        str(report["data"]),
        int(report["images"]),
        _figure(report["bits_per_dim"]),
        _figure(report["standard_error_monte_carlo"]),
        _optional(report["standard_error_population"]),
        [(int(g["first"]), int(g["last"]), _figure(g["bits_per_dim_each"])) for g in report["timesteps"]],
    )


def _source(path: Path, report: dict[str, Any]) -> tuple[str, str, str, str]:
    return path.name, str(report["command"]), str(report["commit"]), str(report["machine"]["cpu"])
