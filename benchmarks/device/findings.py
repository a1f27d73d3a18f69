"""What a measurement or a check finds: figures, whether what must hold holds, and targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Publish = Callable[[dict[str, Any]], None]


class SkippedError(Exception):
    """Something cannot run here; the message says what it needs."""


class Findings:
    """Published whenever there is something new, so that nothing is lost if the process is killed.

    Args:
        publish: takes the findings as they are now, as JSON.
    """

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._found: dict[str, Any] = {"figures": {}, "checks": [], "targets": []}

    def record(self, name: str, value: Any) -> None:
        """Keep a figure, or anything else that is JSON."""
        self._found["figures"][name] = finite_json(value)
        self._publish(self._found)

    def add(self, name: str, entry: Any) -> None:
        """Append an entry to a list of figures; of `lines` each is a line of the printed table."""
        self._found["figures"].setdefault(name, []).append(finite_json(entry))
        self._publish(self._found)

    def check(self, name: str, passed: bool, found: str = "") -> bool:
        """Keep whether something is as it must be; one that is not fails the stage, which goes on.

        Args:
            name: what must hold.
            passed: whether it does.
            found: what there was instead.
        """
        entry: dict[str, Any] = {"name": name, "passed": bool(passed)}
        if found and not passed:
            entry["found"] = found
        self._found["checks"].append(entry)
        self._publish(self._found)
        return bool(passed)

    def target(self, name: str, value: float, bound: float, at_least: bool) -> None:
        """Keep a figure that is held against a bound; missing it fails nothing.

        Args:
            name: what was measured.
            value: the figure; one that is no number misses the bound.
            bound: what it is held against.
            at_least: whether the figure should be `bound` or more; else `bound` or less.
        """
        met = value >= bound if at_least else value <= bound
        self._found["targets"].append(
            finite_json({"name": name, "value": value, "bound": bound, "at_least": at_least, "met": met})
        )
        self._publish(self._found)

    @property
    def figures(self) -> dict[str, Any]:
        """What was recorded."""
        figures: dict[str, Any] = self._found["figures"]
        return figures

    @property
    def num_checks(self) -> int:
        """How many checks were made."""
        return len(self._found["checks"])

    @property
    def failed_checks(self) -> list[str]:
        """Names of the checks that did not pass."""
        return [entry["name"] for entry in self._found["checks"] if not entry["passed"]]

    def ended(self, status: str, reason: str = "") -> dict[str, Any]:
        """Publish and return the findings with how it ended; a check that did not pass is a failure, however it did.

        Args:
            status: `passed`, `skipped` or `error`.
            reason: why, where there is one.
        """
        failed = self.failed_checks
        if failed:
            names = f"{len(failed)} checks: {'; '.join(failed[:3])}{'; …' if len(failed) > 3 else ''}"
            status, reason = "failed", f"{names}; {reason}" if reason else names
        final = {**self._found, "status": status, "reason": " ".join(reason.split())}
        self._publish(final)
        return final


def finite_json(value: Any) -> Any:
    """The same, with null in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): finite_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
