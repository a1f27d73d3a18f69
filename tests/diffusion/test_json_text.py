"""JSON of anybody's: what is read, and that everything else is one line."""

import json
import os

import pytest

from diffusion.errors import InputError
from diffusion.json_text import MAX_JSON_BYTES, MAX_JSON_VALUES, json_kind, parse_json, read_json, read_json_object


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True, "ü", {}]}, [], 3, "x", None, {"big": 10**400}])
def test_what_json_writes_is_read(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("1" * 5000, "not JSON"),
        ("[NaN]", "it holds NaN"),
        ('{"a": -Infinity}', "it holds -Infinity"),
        ('{"a": 1, "b": 2, "a": 3}', "the field 'a' stands twice"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        ("[" + "[]," * MAX_JSON_VALUES + "[]]", "values and names, expected at most 2097152"),
        ("\x00", "not JSON"),
    ],
)
def test_what_is_not_json_is_one_line(text, what, tmp_path):
    with pytest.raises(InputError, match=what) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=rf"a\.json: .*{what}.*; do so$") as caught:
        read_json(path, "do so")
    assert "\n" not in str(caught.value)


def test_only_regular_files_of_a_reasonable_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: is a pipe, expected a regular file; do so"):
        read_json(tmp_path / "pipe", "do so")
    with pytest.raises(InputError, match="is a folder, expected a regular file"):
        read_json(tmp_path, "do so")
    with pytest.raises(InputError, match="zero: is a device, expected a regular file"):
        read_json(tmp_path.__class__("/dev/zero"), "do so")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(InputError, match=f"large: has {MAX_JSON_BYTES + 1} bytes"):
        read_json(large, "do so")
    for path in (tmp_path / "none", large / "none"):
        with pytest.raises(InputError, match="none: no such file; make one"):
            read_json(path, "do so", "make one")
    for name in ("a\0b", "n" * 300):
        with pytest.raises(InputError, match="cannot be read"):
            read_json(tmp_path / name, "do so")


def test_an_object_is_an_object(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_json_object(path, "do so") == {"a": 1}
    path.write_text("[1]")
    with pytest.raises(InputError, match=r"a\.json: holds a list, expected a JSON object; do so"):
        read_json_object(path, "do so")


def test_kinds_have_the_names_of_json():
    kinds = [json_kind(value) for value in (None, True, {}, [], "", 1, 1.5)]
    assert kinds == ["null", "true or false", "an object", "a list", "a text", "a number", "a number"]
