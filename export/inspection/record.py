"""What is known of a file or folder, as a table or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusion.process import Process
from export.inspection.counts import NetworkCounts
from export.inspection.runs_here import RunsOn
from export.source import process_line
from runtime.runs.places import Place

_MAX_OPERATORS = 8
_MAX_LENGTH = 600


@dataclass(frozen=True)
class Inspection:
    """What is known of a file or folder; what a kind does not have is None or empty.

    Attributes:
        kind: what it is.
        path: as it was named.
        process, origins: what its network was trained to do, and where each of `export.source.FACTS` stands.
        counts: how large the network is.
        precision: of its arithmetic, or of its weights.
        tensors: inputs and outputs, by name: type and shape.
        verification: the object of a sidecar.
        origin: who wrote it, and of what.
        hashes: SHA-256 by what was hashed.
        runs_here: the backends that take it.
        more: what else this kind says.
    """

    kind: str
    path: Place
    process: Process | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    counts: NetworkCounts | None = None
    precision: str | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)
    verification: Mapping[str, Any] | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    runs_here: tuple[RunsOn, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        process = None if self.process is None else self.process.to_json()
        counts = self.counts
        return {
            "kind": self.kind,
            "path": str(self.path),
            "process": process,
            "process_origins": dict(self.origins),
            "conditions": [] if process is None else process.get("conditions", []),
            "parameters": None if counts is None else counts.parameters,
            "flops_per_image": None if counts is None else counts.flops_per_image,
            "operators": {} if counts is None else dict(counts.operators),
            "precision": self.precision,
            "tensors": dict(self.tensors),
            "verification": None if self.verification is None else dict(self.verification),
            "origin": dict(self.origin),
            "sha256": dict(self.hashes),
            "runs_here": [{"backend": each.backend, "missing": each.missing or None} for each in self.runs_here],
            **self.more,
        }

    def to_text(self) -> str:
        """The table that is printed."""
        rows = [("file", str(self.path)), ("is", self.kind), *self._process_rows(), *self._network_rows()]
        if self.verification is not None:
            rows.append(("verified", _verification(self.verification)))
        rows += [(f"sha256 {name}", value) for name, value in self.hashes.items()]
        rows += [
            (name.replace("_", " "), _plain(value)) for name, value in self.origin.items() if value not in _NOTHING
        ]
        rows += [(name.replace("_", " "), _plain(value)) for name, value in self.more.items() if value not in _NOTHING]
        rows += [("runs here" if not each.missing else "not here", _place(each)) for each in self.runs_here]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows)

    def _process_rows(self) -> Iterator[tuple[str, str]]:
        if self.process is None:
            return
        sample = self.process.sample
        yield "process", process_line(self.process, self.origins)
        yield "sample", f"{' × '.join(map(str, sample.chw))}, {sample.levels} gray levels"
        for condition in self.to_json()["conditions"]:
            yield "condition", _plain(condition)

    def _network_rows(self) -> Iterator[tuple[str, str]]:
        for name, text in self.tensors.items():
            yield f"tensor {name}", text
        if self.precision is not None:
            yield "precision", self.precision
        if self.counts is not None:
            flops, operators = self.counts.flops_per_image, list(self.counts.operators.items())
            yield "parameters", f"{self.counts.parameters:,}"
            yield "per image", "unknown FLOPs" if flops is None else f"{_flops(flops)} a network call"
            shown = ", ".join(f"{num} {name}" for name, num in operators[:_MAX_OPERATORS])
            more = f", {len(operators) - _MAX_OPERATORS} more kinds" if len(operators) > _MAX_OPERATORS else ""
            yield "operators", shown + more


def _flops(number: int) -> str:
    scale, unit = (1e9, "GFLOP") if number >= 1e9 else (1e6, "MFLOP")
    return f"{number / scale:,.2f} {unit}"


_NOTHING: tuple[Any, ...] = (None, "", [], {})


def _verification(record: Mapping[str, Any]) -> str:
    chain = record["chain"]
    errors = [
        f"{name} {error:.2e}"
        for name, error in (
            ("worst", record["worst_relative_error"]),
            ("median", record["median_relative_error"]),
            (f"after a chain of {chain['steps']} steps", chain["relative_error"]),
        )
        if isinstance(error, float)
    ]
    tolerance = record["tolerance"]
    allowed = f" (tolerance {tolerance:g})" if isinstance(tolerance, float) else ""
    ran_on = f", on {record['ran_on']}" if record["ran_on"] else ""
    return f"{', '.join(errors) or 'passed'}{allowed}, against {record['reference']}{ran_on}"


def _place(each: RunsOn) -> str:
    return f"{each.backend}: {each.missing}" if each.missing else each.backend


def _plain(value: object) -> str:
    """A value for one line of a table."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{name} {_plain(each)}" for name, each in value.items() if each not in _NOTHING)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        text = ", ".join(map(_plain, value))
    else:
        text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 1] + "…"
