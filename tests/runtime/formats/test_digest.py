"""The digest of a JSON object holds for its values, whatever the layout, and for no others."""

from __future__ import annotations

import hashlib
import json

import pytest

from diffusion.errors import InputError
from diffusion.json_text import parse_json
from runtime.formats.digest import DIGEST, check, seal, sealed_text

FIELDS = {"format": 2, "name": "ünët", "numbers": [1, 0.1, -0.0, 1e-300], "none": None, "inner": {"b": True, "a": ""}}


def test_digest_is_the_hash_of_the_canonical_text() -> None:
    text = b'{"a":[1,0.5],"b":{"c":null,"d":"\\u00fc"}}'
    sealed = seal({"b": {"d": "ü", "c": None}, "a": (1, 0.5)})
    assert sealed[DIGEST] == "sha256:" + hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("layout", [{}, {"indent": 4}, {"sort_keys": True}, {"ensure_ascii": False}])
def test_the_layout_of_the_file_does_not_matter(layout: dict) -> None:
    text = json.dumps(seal(FIELDS), **layout)
    assert check(parse_json(text), "a.json", "copy it again") == FIELDS
    assert seal(seal(FIELDS)) == seal(FIELDS)


def test_names_that_are_no_texts_are_sealed_as_they_will_be_read() -> None:
    sealed = seal({10: 1, 9: 2})  # sorted as numbers, and as texts, they stand in another order
    assert check(parse_json(json.dumps(sealed)), "a.json", "") == {"10": 1, "9": 2}


def test_every_changed_byte_is_refused_or_changes_no_value() -> None:
    content = sealed_text(FIELDS).encode()
    refused = 0
    for place in range(len(content)):
        for flip in (0x01, 0x02, 0x20, 0x80):
            changed = content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :]
            try:
                values = check(parse_json(changed), "a.json", "copy it again")
            except InputError:
                refused += 1
            else:
                assert values == FIELDS
    assert refused > 3 * len(content)


def test_errors_name_the_file_both_digests_and_the_remedy() -> None:
    sealed = seal(FIELDS)
    with pytest.raises(InputError, match=r"^a\.json: digest is missing, but the other fields have sha256:.*; copy it$"):
        check(FIELDS, "a.json", "copy it")
    with pytest.raises(InputError, match=rf"digest is '{sealed[DIGEST][:50]}.*, but .*sha256:.*changed after it was w"):
        check(sealed | {"format": 3}, "a.json", "copy it")
    with pytest.raises(InputError, match="digest is None, but"):
        check(FIELDS | {DIGEST: None}, "a.json", "copy it")


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(InputError, match=r"^a\.json: holds what no digest can be of"):
        check(parse_json('{"a": 1e999, "digest": ""}'), "a.json", "copy it")
    with pytest.raises(ValueError, match="JSON"):
        seal({"a": float("inf")})
