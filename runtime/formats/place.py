"""Where an engine runs: a verification holds for one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where an engine runs: what may change its results.

    Attributes:
        processor: the GPU's or the CPU's name, and what else it is told by.
        driver: its version; None for a CPU.
        runtime: module and version.
    """

    processor: str
    driver: str | None
    runtime: str

    def __str__(self) -> str:
        driver = "" if self.driver is None else f"driver {self.driver}, "
        return f"{self.processor}, {driver}{self.runtime}"

    def to_json(self) -> dict[str, Any]:
        """For a sidecar, and for the key and the record of a verification."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Place | None:
        """The inverse of `to_json`; None for anything else, where nothing was verified."""
        if not isinstance(value, dict) or value.keys() != {"processor", "driver", "runtime"}:
            return None
        processor, driver, runtime = value["processor"], value["driver"], value["runtime"]
        if not isinstance(processor, str) or not isinstance(driver, str | None) or not isinstance(runtime, str):
            return None
        return cls(processor, driver, runtime)
