"""What an engine was compared with, and how far apart the two were: the object `verification` of a sidecar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.formats.fields import Fields


@dataclass(frozen=True)
class VerificationRecord:
    """A verification as it is kept; all but the first is told for people and for messages.

    Attributes:
        passed: whether every error was allowed.
        tolerance: for every error.
        worst, median: relative L2 error of the predictions, over timesteps; None where it is not finite.
        chain_steps, chain_error: of x_0 after a chain of so many steps.
        reference, ran_on: what was compared with what.
        timesteps: objects of `timestep`, `relative_error` and what was `allowed` there.
        executed: whether a plan itself ran, or its network alone; None for engines that always run.
        compared_by, compared: by what else it was compared, and the largest error of each network by its name.
    """

    passed: bool
    tolerance: float | None = None
    worst: float | None = None
    median: float | None = None
    chain_steps: int | None = None
    chain_error: float | None = None
    reference: str = "the reference"
    ran_on: str | None = None
    timesteps: tuple[Mapping[str, Any], ...] = ()
    executed: bool | None = None
    compared_by: str | None = None
    compared: Mapping[str, float | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        of_a_plan = {
            "executed": self.executed,
            "compared_by": self.compared_by,
            "compared_relative_error": dict(self.compared),
        }
        return {
            "passed": self.passed,
            "tolerance": self.tolerance,
            "worst_relative_error": self.worst,
            "median_relative_error": self.median,
            "chain": {"steps": self.chain_steps, "relative_error": self.chain_error},
            "reference": self.reference,
            "ran_on": self.ran_on,
            "timesteps": [dict(each) for each in self.timesteps],
        } | ({} if self.executed is None else of_a_plan)

    @classmethod
    def from_json(cls, fields: Fields) -> VerificationRecord:
        """The inverse of `to_json`; only `passed` must be there.

        Raises:
            InputError: a field of another type.
        """
        chain = fields.inner("chain")
        return cls(
            passed=fields.get("passed", bool),
            tolerance=fields.optional("tolerance", float),
            worst=fields.optional("worst_relative_error", float),
            median=fields.optional("median_relative_error", float),
            chain_steps=chain.optional("steps", int),
            chain_error=chain.optional("relative_error", float),
            reference=fields.optional("reference", str, "the reference"),
            ran_on=fields.optional("ran_on", str),
            timesteps=fields.list_of("timesteps", dict),
            executed=fields.optional("executed", bool),
            compared_by=fields.optional("compared_by", str),
            compared=fields.optional("compared_relative_error", dict, {}),
        )
