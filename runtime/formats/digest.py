"""The digest of a JSON object: it vouches for every other field, so that a changed byte is not taken for another value.

    {"format": 2, "num": 50, "digest": "sha256:9b1c…"}

What is hashed is the canonical JSON of the fields but the digest: names sorted, no spaces, ASCII. Layout and order may
change; values may not. It guards against accidents, not against somebody who computes it anew: that is what signatures
are for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from diffusion.errors import InputError
from diffusion.number_checks import shown

DIGEST = "digest"
"""The name of the field."""


def seal(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as JSON has them, and their digest as the last; one that they have already is replaced.

    Raises:
        ValueError: NaN or an infinity, which JSON has not.
        TypeError: something else that JSON has not.
    """
    # As they will be read: names become texts, tuples lists.
    values = json.loads(json.dumps({name: value for name, value in fields.items() if name != DIGEST}, allow_nan=False))
    return values | {DIGEST: _digest(values)}


def sealed_text(fields: Mapping[str, Any]) -> str:
    """The text of a JSON file with these fields and their digest. Raises as `seal`."""
    return json.dumps(seal(fields), indent=1, allow_nan=False) + "\n"


def check(fields: Mapping[str, Any], source: str, remedy: str) -> dict[str, Any]:
    """The fields but the digest, which must be theirs.

    Args:
        fields: of a parsed JSON object.
        source: what to call it in an error: a file's name.
        remedy: the end of the error.

    Raises:
        InputError: it has no digest, or another.
    """
    values = {name: value for name, value in fields.items() if name != DIGEST}
    try:
        expected = _digest(values)
    except (ValueError, RecursionError) as error:  # 1e999 is parsed as an infinity
        raise InputError(f"{source}: holds what no digest can be of ({error}); {remedy}") from None
    found = fields.get(DIGEST)
    if found != expected:
        raise InputError(
            f"{source}: {DIGEST} is {shown(found) if DIGEST in fields else 'missing'}, but the other fields have "
            f"{expected}: the file was changed after it was written; {remedy}"
        )
    return values


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()
