"""`seed, start: as in sample` in a docstring describes two parameters, which the API page lists one by one."""

import re
from typing import Any

import griffe

# A name at the section's indentation and, below it, lines that are indented more.
_GROUP = re.compile(r"^( +)(\w+(?:, \w+)+):(.*(?:\n\1 +\S.*)*)", re.MULTILINE)
_SECTION = re.compile(r"^(?:Args|Attributes):\n(?:(?: +\S.*)?\n?)*", re.MULTILINE)


def one_by_one(docstring: str) -> str:
    """The docstring with each group of parameters written out."""
    return _SECTION.sub(lambda section: _GROUP.sub(_written_out, section[0]), docstring)


def _written_out(group: re.Match[str]) -> str:
    indent, names, description = group.groups()
    return "\n".join(f"{indent}{name}:{description}" for name in names.split(", "))


class GroupedParameters(griffe.Extension):
    """Applied to every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Write out the groups of one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = one_by_one(obj.docstring.value)
