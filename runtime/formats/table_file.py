"""The file of a sampler's table: the JSON object of `diffusion.samplers.user_table`, how it was fitted, and its digest.

Programs of ours write a digest into it, and a file whose other fields do not fit it is refused. Whoever edits a table
removes the field; the table then says of itself that it has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commands.whole_files import write_whole_text
from diffusion.errors import InputError
from diffusion.json_text import read_json_object
from diffusion.number_checks import is_finite_number, is_whole, shown
from diffusion.samplers.user_table import table_from_json, table_to_json
from diffusion.step_table import StepTable
from runtime.formats.digest import DIGEST, check, sealed_text

FITTED = "fitted"
OBJECTIVES = ("data", "teacher")
_REMEDY = f"restore the file, or remove the field {DIGEST} if its numbers were changed on purpose"
WITHOUT_DIGEST = "without digest, so nothing tells whether it was changed"


@dataclass(frozen=True)
class FittedRecord:
    """How a table was fitted, and what it reached.

    Attributes:
        objective: one of `OBJECTIVES`.
        seed: of all draws.
        start: the method whose table the fit began with, and how its timesteps were chosen.
        settings: whatever else determines the numbers, by name.
        held_out: of noise that the fit has not seen, by measure: `start` and `fitted`; None where it is not finite.
        x_start_error: by precision of the network's arithmetic: root mean square of x_0's error, `start` and `fitted`;
            None where it is not finite.
    """

    objective: str
    seed: int
    start: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    held_out: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    x_start_error: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, fields: object, source: str) -> FittedRecord:
        """The inverse of `to_json`. Raises InputError for a missing, unknown or impossible field."""
        names = tuple(cls.__dataclass_fields__)
        if not isinstance(fields, Mapping) or set(fields) != set(names):
            raise InputError(f"{source}: {FITTED} is {shown(fields)}, expected an object with {', '.join(names)}")
        _expect(source, "objective", fields["objective"], fields["objective"] in OBJECTIVES, " or ".join(OBJECTIVES))
        _expect(source, "seed", fields["seed"], is_whole(fields["seed"]), "a whole number")
        _expect(source, "start", fields["start"], isinstance(fields["start"], str), "a text")
        _expect(source, "settings", fields["settings"], isinstance(fields["settings"], Mapping), "an object")
        for name in ("held_out", "x_start_error"):
            figures = fields[name]
            is_figures = isinstance(figures, Mapping) and all(
                isinstance(of, Mapping)
                and set(of) == {"start", "fitted"}
                and all(each is None or is_finite_number(each) for each in of.values())
                for of in figures.values()
            )
            _expect(source, name, figures, is_figures, "an object of the figures start and fitted")
        return cls(**fields)


def _expect(source: str, name: str, found: object, is_good: bool, expected: str) -> None:
    if not is_good:
        raise InputError(f"{source}: {FITTED}: {name} is {shown(found)}, expected {expected}")


@dataclass(frozen=True)
class TableFile:
    """What stands in the file of a table.

    Attributes:
        table: the rows.
        fitted: how they were fitted; None for others.
        sealed: whether it has a digest, which then fits.
    """

    table: StepTable
    fitted: FittedRecord | None
    sealed: bool

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], source: str) -> TableFile:
        """From a parsed JSON object; `source` is what to call it in an error. Raises InputError as `read`."""
        sealed = DIGEST in fields
        if sealed:
            fields = check(fields, source, _REMEDY)
        table = table_from_json({name: value for name, value in fields.items() if name != FITTED}, source)
        fitted = FittedRecord.from_json(fields[FITTED], source) if FITTED in fields else None
        if (fitted is None) != (table.checkpoint_sha256 is None):
            raise InputError(f"{source}: has only one of checkpoint_sha256 and {FITTED}, expected both or neither")
        return cls(table, fitted, sealed)

    @classmethod
    def read(cls, path: str | Path) -> TableFile:
        """Raises InputError for a file that cannot be read, is no table, or was changed after it was written."""
        path = Path(path)
        fields = read_json_object(path, "expected a table, as `ddpm-rt fit-table` or a user writes it")
        return cls.from_json(fields, str(path))

    def write(self, path: Path) -> None:
        """Write it with its digest, whole or not at all. Raises InputError if it cannot be written."""
        fitted = {} if self.fitted is None else {FITTED: self.fitted.to_json()}
        write_whole_text(path, sealed_text({**table_to_json(self.table), **fitted}))


def is_table_file(sampler: object) -> bool:
    """Whether a sampler's name is the path of a table's file."""
    return isinstance(sampler, str | Path) and str(sampler).endswith(".json")


def read_table(path: str | Path) -> StepTable:
    """The table in a file, which notes if it has no digest. Raises InputError as `TableFile.read`."""
    file = TableFile.read(path)
    return file.table if file.sealed else file.table.with_notes(f"{path}: {WITHOUT_DIGEST}")
