"""What a network is conditioned on beside t: inputs that stay as they are along a sample's chain.

A class label, the scale of classifier-free guidance (Ho & Salimans 2022), a small image to enlarge. A process lists
them; every call of its network takes one array for each, in that order, with a row for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion.errors import InputError
from diffusion.number_checks import is_finite_number, shown, whole_number

INT64, FLOAT32 = "int64", "float32"
TYPES = (INT64, FLOAT32)
GUIDANCE = "guidance"
"""The condition that scales guidance: p_null + g·(p_y − p_null)."""

MAX_AXES, MAX_ELEMENTS, MAX_CLASSES = 8, 2**28, 2**20
"""Of one sample's value, far above any network's; a file of somebody else's may claim any number."""

_REQUIRED = ("name", "type", "shape")
_OPTIONAL = ("classes", "null", "default")
# What the network's other tensors are called.
_TAKEN = ("x", "t", "prediction")


@dataclass(frozen=True)
class Condition:
    """One input of a network that stays as it is along a chain.

    Attributes:
        name: of the network's input.
        type: `int64`, a class label; or `float32`.
        shape: of one sample's value; () for a number.
        classes: of a label: 0..classes−1.
        null: the label that stands for no class, which trains and draws unconditionally; None where there is none.
        default: of a float32 number: what it is unless a user says it; None where it must be said.

    Raises:
        InputError: a name that is taken or no identifier, another type or shape, or what does not belong to the type.
    """

    name: str
    type: str
    shape: tuple[int, ...] = ()
    classes: int | None = None
    null: int | None = None
    default: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier() or self.name in _TAKEN:
            raise InputError(
                f"condition: name is {shown(self.name)}, expected an identifier other than x, t, prediction"
            )
        where = f"condition {self.name}"
        if self.type not in TYPES:
            raise InputError(f"{where}: type is {shown(self.type)}, expected one of {', '.join(TYPES)}")
        if not isinstance(self.shape, Sequence) or isinstance(self.shape, str):
            raise InputError(f"{where}: shape is {shown(self.shape)}, expected a list of sizes")
        if len(self.shape) > MAX_AXES:
            raise InputError(f"{where}: shape has {len(self.shape)} axes, expected at most {MAX_AXES}")
        sizes = tuple(whole_number(size, f"{where}: a size of its shape", 1) for size in self.shape)
        if math.prod(sizes) > MAX_ELEMENTS:
            raise InputError(
                f"{where}: shape is {shown(list(sizes))}, {math.prod(sizes)} numbers, expected at most {MAX_ELEMENTS}"
            )
        object.__setattr__(self, "shape", sizes)
        if self.type == INT64:
            self._check_label(where)
        elif self.classes is not None or self.null is not None:
            raise InputError(f"{where}: is float32 and has classes or a null class, expected int64 for a class label")
        if self.default is not None:
            if self.type == INT64 or self.shape or not is_finite_number(self.default):
                raise InputError(f"{where}: default is {shown(self.default)}, expected it of a float32 number alone")
            object.__setattr__(self, "default", float(self.default))
        if self.name == GUIDANCE and (self.type != FLOAT32 or self.shape):
            raise InputError(f"{where}: is {self.type} {list(self.shape)}, expected a float32 number")

    def _check_label(self, where: str) -> None:
        if self.shape:
            raise InputError(f"{where}: shape is {list(self.shape)}, expected [], one label for each sample")
        if self.classes is None:
            raise InputError(f"{where}: is int64 and says no number of classes, expected one")
        object.__setattr__(self, "classes", whole_number(self.classes, f"{where}: classes", 1, MAX_CLASSES))
        if self.null is not None:
            object.__setattr__(self, "null", whole_number(self.null, f"{where}: null", 0, self.classes))

    @property
    def is_label(self) -> bool:
        """Whether it is a class label."""
        return self.type == INT64

    @property
    def num_elements(self) -> int:
        """Numbers of one sample's value."""
        return math.prod(self.shape)

    @property
    def num_labels(self) -> int:
        """Of a label: how many values it may have, the null class among them: 0..num_labels−1."""
        assert self.classes is not None
        return max(self.classes, 0 if self.null is None else self.null + 1)

    def to_json(self) -> dict[str, Any]:
        """The JSON object; what it does not have does not stand in it."""
        described: dict[str, Any] = {"name": self.name, "type": self.type, "shape": list(self.shape)}
        more = {name: getattr(self, name) for name in _OPTIONAL}
        return described | {name: value for name, value in more.items() if value is not None}

    @classmethod
    def from_json(cls, fields: object) -> Condition:
        """The inverse of `to_json`.

        Raises:
            InputError: a field that is missing, unknown or impossible.
        """
        if not isinstance(fields, Mapping):
            raise InputError(f"conditions: found {shown(fields)}, expected a JSON object for each")
        for name in _REQUIRED:
            if name not in fields:
                raise InputError(f"conditions: {shown(dict(fields))} has no field {name!r}; export again")
        for name in fields:
            if name not in (*_REQUIRED, *_OPTIONAL):
                raise InputError(
                    f"condition {shown(fields['name'])}: has a field {shown(name)} that this version does not know; "
                    "install the version that wrote it"
                )
        return cls(**{str(name): value for name, value in fields.items()})


def check_conditions(conditions: Sequence[Condition]) -> tuple[Condition, ...]:
    """The conditions of one process, which must go together.

    Raises:
        InputError: two of one name, or guidance of a network without a null class, or with two labels.
    """
    names = [condition.name for condition in conditions]
    if len(set(names)) != len(names):
        raise InputError(f"conditions are {', '.join(names)}, expected names that differ")
    if GUIDANCE in names:
        labels = [condition for condition in conditions if condition.is_label]
        if len(labels) != 1 or labels[0].null is None:
            raise InputError("condition guidance: expected one class label beside it, with a null class")
    return tuple(conditions)
