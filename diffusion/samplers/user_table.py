"""A table as a JSON object, and the check of a user's table against the process that is to run it.

    {
      "format": 1,
      "sampler": "mine",            what reports call it
      "clip": 1.0,                  bound for |x_start|, or null for none
      "histories": 1,               0, 1 or 2
      "learned": false,             whether noise is s·exp(k·w)·z with w from the network; false unless said
      "h2": "h1",                   with two histories: what the second becomes, "h1" (unless said) or "x_start"
      "notes": ["…"],               optional
      "checkpoint_sha256": "…",     optional: of the checkpoint that the numbers were fitted to, which alone runs them
      "rows": [{"t": 999, "u": 1.0, "v": -0.5, "a": 0.9, "b": 0.1}, …]
    }

Rows stand in the order they run; `t` is the training timestep that the network is given, and a coefficient that is not
named is 0. What the coefficients do is said in `diffusion.step_table`; u and v depend on what the network predicts,
see `diffusion.prediction.x_start_coefficients`. Numbers written by `table_to_json` are read back exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion.errors import InputError, in_file
from diffusion.number_checks import is_finite_number, is_whole, shown
from diffusion.prediction import x_start_coefficients
from diffusion.process import Process
from diffusion.step_table import COLUMNS, StepTable, start_note

TABLE_FORMAT = 1
_REQUIRED = ("format", "sampler", "clip", "histories", "rows")
_FIELDS = (*_REQUIRED, "learned", "h2", "notes", "checkpoint_sha256")
_H2 = ("h1", "x_start")


def table_from_json(fields: object, source: str = "table") -> StepTable:
    """The inverse of `table_to_json`.

    Args:
        fields: the parsed JSON object.
        source: what to call it in an error: a file's name.

    Raises:
        InputError: a format this version does not know, an unknown, missing or impossible field or coefficient.
    """
    try:
        return _table(fields)
    except InputError as error:
        raise in_file(source, error, "correct the file") from None


def table_to_json(table: StepTable) -> dict[str, Any]:
    """The JSON object of a table, with the float64 coefficients that are not 0."""
    rows = []
    for timestep, coefficients in zip(table.timesteps, table.coefficients, strict=True):
        row = {name: float(value) for name, value in zip(COLUMNS, coefficients, strict=True) if value != 0.0}
        rows.append({"t": int(timestep), **row})
    fitted_to = {} if table.checkpoint_sha256 is None else {"checkpoint_sha256": table.checkpoint_sha256}
    return {
        "format": TABLE_FORMAT,
        "sampler": table.sampler,
        "clip": float(table.clip) if math.isfinite(table.clip) else None,
        "histories": table.histories,
        "learned": table.learned,
        "h2": "x_start" if table.h2_is_x_start else "h1",
        "notes": list(table.notes),
        **fitted_to,
        "rows": rows,
    }


def check_user_table(table: StepTable, process: Process, force: bool = False) -> StepTable:
    """The table, if the process can run it; with notes on what differs from what the process would do.

    Args:
        table: the rows.
        process: of the network.
        force: run a table that was fitted to another checkpoint.

    Raises:
        InputError: a timestep the network was not trained on, a learned variance it does not predict, or a table that
            was fitted to another checkpoint.
    """
    name, total = f"table of {table.sampler}", process.schedule.num_train_timesteps
    if table.timesteps.max() >= total:
        raise InputError(f"{name}: timestep {table.timesteps.max()} is outside the network's 0 to {total - 1}")
    if table.learned and process.variance_type != "learned_range":
        raise InputError(
            f"{name}: learned is true, but variance_type of the process is {process.variance_type}; "
            "expected learned_range"
        )
    notes: list[str | None] = []
    try:
        check_fitted_to(table, process)
    except InputError as error:
        if not force:
            raise
        notes.append(str(error))
    if table.ascending:
        notes.append("the timesteps ascend: the chain runs from data to noise")
    else:
        notes.append(start_note(process.schedule.alpha_bar, int(table.timesteps[0])))
    clip = np.inf if process.clip_sample is None else process.clip_sample
    if table.clip != clip:
        said = ["none" if np.isinf(bound) else f"{bound:g}" for bound in (table.clip, clip)]
        notes.append(f"the clip of x_start is the table's, {said[0]}, where the process has {said[1]}")
    expected = x_start_coefficients(process.prediction_type, process.schedule.alpha_bar[table.timesteps])
    for column, values in zip("uv", expected, strict=True) if table.checkpoint_sha256 is None else ():
        off = np.flatnonzero(~np.isclose(table.column(column), values, rtol=1e-4, atol=1e-6))
        if off.size:
            notes.append(
                f"{column} at timestep {table.timesteps[off[0]]} is {table.column(column)[off[0]]:.6g}, where the "
                f"schedule and a prediction of {process.prediction_type} give {values[off[0]]:.6g}"
            )
            break
    return table.with_notes(*(note for note in notes if note is not None))


def check_fitted_to(table: StepTable, process: Process) -> None:
    """Raises InputError for a table that was fitted to a checkpoint other than that of the process."""
    fitted_to, network = table.checkpoint_sha256, process.checkpoint_sha256
    if fitted_to not in (None, network):
        of_network = "that of this network is not known" if network is None else f"this network is of {network[:12]}"
        raise InputError(
            f"table of {table.sampler}: was fitted to checkpoint {str(fitted_to)[:12]}, {of_network}; fit a table to "
            "this network with `python -m train.fit_table`, or choose a sampler that is not fitted"
        )


def _table(fields: object) -> StepTable:
    if not isinstance(fields, Mapping):
        raise InputError(f"found {type(fields).__name__}, expected the JSON object of a table")
    if fields.get("format") != TABLE_FORMAT or isinstance(fields.get("format"), bool):
        raise InputError(f"table format is {shown(fields.get('format'))}, this version reads {TABLE_FORMAT}")
    _check_names(fields, _REQUIRED, _FIELDS, "the table")
    name, clip, rows = fields["sampler"], fields["clip"], fields["rows"]
    learned, h2, notes = fields.get("learned", False), fields.get("h2", "h1"), fields.get("notes", [])
    checkpoint_sha256 = fields.get("checkpoint_sha256")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise InputError(f"sampler is {shown(name)}, expected a name in printable characters")
    if clip is not None and not is_finite_number(clip):
        raise InputError(f"clip is {shown(clip)}, expected a positive number or null")
    if not is_whole(fields["histories"]):
        raise InputError(f"histories is {shown(fields['histories'])}, expected 0, 1 or 2")
    if not isinstance(learned, bool):
        raise InputError(f"learned is {shown(learned)}, expected true or false")
    if h2 not in _H2:
        raise InputError(f"h2 is {shown(h2)}, expected one of {', '.join(_H2)}")
    if not isinstance(notes, list) or not all(isinstance(note, str) and note.isprintable() for note in notes):
        raise InputError(f"notes is {shown(notes)}, expected a list of strings, one line each, in printable characters")
    if "checkpoint_sha256" in fields and not (isinstance(checkpoint_sha256, str) and checkpoint_sha256):
        raise InputError(f"checkpoint_sha256 is {shown(checkpoint_sha256)}, expected a text")
    if not isinstance(rows, list) or not rows:
        raise InputError("rows is not a non-empty list")
    timesteps = np.zeros(len(rows), dtype=np.int64)
    coefficients = np.zeros((len(rows), len(COLUMNS)))
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"row {place} is {shown(row)}, expected a JSON object")
        _check_names(row, ("t",), ("t", *COLUMNS), f"row {place}")
        if not is_whole(row["t"]) or abs(row["t"]) >= 2**63:
            raise InputError(f"row {place}: t is {shown(row['t'])}, expected a whole number")
        timesteps[place] = row["t"]
        for column, value in row.items():
            if column == "t":
                continue
            if not is_finite_number(value):
                raise InputError(f"row {place}: {column} is {shown(value)}, expected a finite number")
            coefficients[place, COLUMNS.index(column)] = value
    return StepTable(
        name,
        timesteps,
        coefficients,
        clip=np.inf if clip is None else float(clip),
        histories=fields["histories"],
        learned=learned,
        h2_is_x_start=h2 == "x_start",
        notes=tuple(notes),
        checkpoint_sha256=checkpoint_sha256,
    )


def _check_names(fields: Mapping[str, Any], required: tuple[str, ...], known: tuple[str, ...], where: str) -> None:
    missing = [name for name in required if name not in fields]
    if missing:
        raise InputError(f"{where} has no {missing[0]!r}")
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise InputError(f"{where} has a field {shown(unknown[0])}, expected {', '.join(known)}")
