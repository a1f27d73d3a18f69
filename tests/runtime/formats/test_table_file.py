"""The file of a table: it comes back bit for bit, and says whether it was changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from runtime.formats.digest import DIGEST, seal
from runtime.formats.table_file import FittedRecord, TableFile, is_table_file, read_table

PROCESS = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear"), checkpoint_sha256="ab12")
RECORD = FittedRecord(
    "data", 3, "dpmpp_2m, quadratic", {"steps": 7}, {"energy distance": {"start": 0.2, "fitted": 0.1}}
)


def fitted(tmp_path: Path) -> Path:
    table = replace(make_table(PROCESS, "dpmpp_2m", 3), checkpoint_sha256="ab12", notes=())
    TableFile(table, RECORD, sealed=True).write(tmp_path / "table.json")
    return tmp_path / "table.json"


def test_it_comes_back(tmp_path: Path) -> None:
    path = fitted(tmp_path)
    file, expected = TableFile.read(path), make_table(PROCESS, "dpmpp_2m", 3)
    assert (file.fitted, file.sealed, file.table.checkpoint_sha256, file.table.notes) == (RECORD, True, "ab12", ())
    np.testing.assert_array_equal(file.table.coefficients, expected.coefficients)
    np.testing.assert_array_equal(read_table(str(path)).timesteps, expected.timesteps)


def test_a_digit_that_changed_is_refused_and_a_table_without_digest_says_so(tmp_path: Path) -> None:
    path = fitted(tmp_path)
    text = path.read_text()
    place = text.index('"a": 0.') + len('"a": 0.')
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    with pytest.raises(InputError, match="the file was changed after it was written; restore the file, or remove"):
        read_table(path)
    fields = json.loads(path.read_text())
    del fields[DIGEST]
    path.write_text(json.dumps(fields))
    (note,) = read_table(path).notes
    assert note == f"{path}: without digest, so nothing tells whether it was changed"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fitted": {}}, "fitted is {}, expected an object with objective, seed"),
        ({"fitted": {**RECORD.to_json(), "more": 1}}, "expected an object with objective, seed"),
        ({"fitted": {**RECORD.to_json(), "objective": "luck"}}, "objective is 'luck', expected data or teacher"),
        ({"fitted": {**RECORD.to_json(), "seed": True}}, "seed is True, expected a whole number"),
        ({"fitted": {**RECORD.to_json(), "held_out": {"e": {"start": 1.0}}}}, "held_out is .*, expected an object of"),
        ({"fitted": None}, "fitted is None"),
        ({"checkpoint_sha256": "", "fitted": RECORD.to_json()}, "checkpoint_sha256 is ''"),
        ({"step": 3}, "the table has a field 'step', expected format"),
        ({"digest": "sha256:12"}, "digest is 'sha256:12', but the other fields have"),
    ],
)
def test_impossible_fields(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = fitted(tmp_path)
    fields = {name: value for name, value in json.loads(path.read_text()).items() if name != DIGEST} | changes
    path.write_text(json.dumps(fields if "digest" in changes else seal(fields)))
    with pytest.raises(InputError, match=says) as refused:
        TableFile.read(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_a_record_without_its_checkpoint_is_refused(tmp_path: Path) -> None:
    fields = json.loads(fitted(tmp_path).read_text())
    for name in ("fitted", "checkpoint_sha256"):
        with pytest.raises(InputError, match="has only one of checkpoint_sha256 and fitted"):
            TableFile.from_json(seal({key: value for key, value in fields.items() if key != name}), "table")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "holds a list, expected a JSON object"),
        (b'{"clip": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b'{"format": 1, "format": 1}', "the field 'format' stands twice in one object"),
        (b'{"rows": [{"t": 1, "a": 1, "a": 2}]}', "the field 'a' stands twice"),
    ],
)
def test_impossible_content(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as refused:
        read_table(path)
    assert str(path) in str(refused.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.json: no such file; expected a table"):
        read_table(tmp_path / "none.json")
    assert is_table_file(tmp_path / "none.json")
    assert not is_table_file("ddim")
