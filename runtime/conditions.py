"""What a user asks of a conditional network: classes, a guidance scale, small images, for any number of samples.

The sample with index i takes entry i mod n of a list of n, so what it is does not depend on batch, worker or restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion.conditions import GUIDANCE, Condition
from diffusion.errors import InputError
from diffusion.number_checks import is_finite_number, is_whole, shown
from diffusion.process import Process
from runtime.arrays import check_states

ALL, NULL = "all", "null"
Classes = Sequence[int | None] | np.ndarray | str
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_MAX_LISTED = 1000  # entries of a list that an identity shows as they are


@dataclass(frozen=True, eq=False)
class GivenConditions:
    """The values of a process's conditions.

    Attributes:
        conditions: of the process.
        lists: for each of them an array [n, …] of its type, n ≥ 1, with a number n of its own.
    """

    conditions: tuple[Condition, ...] = ()
    lists: tuple[np.ndarray, ...] = ()

    def of(self, sample_indices: Sequence[int]) -> tuple[np.ndarray, ...]:
        """One array [len(sample_indices), …] for each condition, as a network takes them."""
        return tuple(values[[index % len(values) for index in sample_indices]] for values in self.lists)

    @property
    def classes(self) -> np.ndarray | None:
        """The list of class labels, int64 [n]; None where the network takes none."""
        return next((values for of, values in zip(self.conditions, self.lists, strict=True) if of.is_label), None)

    def identity(self) -> dict[str, Any]:
        """By name, as JSON: short lists of numbers as they are, all else by its SHA-256."""
        return {
            of.name: values.tolist()
            if not of.shape and len(values) <= _MAX_LISTED
            else hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
            for of, values in zip(self.conditions, self.lists, strict=True)
        }


def neutral_conditions(conditions: Sequence[Condition], num: int) -> tuple[np.ndarray, ...]:
    """Values that any network takes, one array [num, …] for each condition: of idle slots, and for measuring."""
    return tuple(np.zeros((num, *each.shape), dtype=each.type) for each in conditions)


def given_conditions(
    process: Process,
    classes: Classes | None = None,
    guidance: float | Sequence[float] | None = None,
    conditions: Mapping[str, object] | None = None,
) -> GivenConditions:
    """What a user gives, taken by its value or refused.

    Args:
        process: of the network.
        classes: labels, None or the null class's number for no class; or `all`, each class once.
        guidance: a scale, or several; None for the process's default.
        conditions: of others, by name: float32 [n, …], or one value of the condition's own shape.

    Raises:
        InputError: a condition that is missing, that the network does not take, or that is out of its range.
    """
    given = dict(conditions or {})
    label, scale = process.label, next((each for each in process.conditions if each.name == GUIDANCE), None)
    if classes is not None:
        if label is None:
            raise InputError("classes were given, but the network is unconditional; leave --class (classes=) out")
        _claim(given, label.name, "--class (classes=)")
        given[label.name] = classes
    if guidance is not None:
        if scale is None:
            raise InputError(f"guidance was given, but {_why_unguided(label)}")
        _claim(given, GUIDANCE, "--guidance (guidance=)")
        given[GUIDANCE] = guidance
    unknown = sorted(set(given) - {each.name for each in process.conditions})
    if unknown:
        names = ", ".join(each.name for each in process.conditions) or "none"
        raise InputError(f"condition {unknown[0]} was given, and the network's are: {names}; leave it out")
    lists = [_values(each, given.get(each.name)) for each in process.conditions]
    return GivenConditions(process.conditions, tuple(lists))


def _claim(given: Mapping[str, object], name: str, instead: str) -> None:
    if name in given:
        raise InputError(f"{name} was given twice, as a condition and by {instead}; give one of them")


def _why_unguided(label: Condition | None) -> str:
    if label is None:
        return "the network is unconditional; leave --guidance (guidance=) out"
    if label.null is None:
        return (
            "the network has no null class to be guided away from; leave --guidance (guidance=) out, or train it with "
            "`python -m train.run --classes --drop-class 0.1`"
        )
    return "the network was exported without; export it again without --no-guidance"


def _values(condition: Condition, given: object) -> np.ndarray:
    """An array [n, …]. Raises InputError as `given_conditions`."""
    if given is None:
        if condition.default is not None:
            return np.array([condition.default], dtype=np.float32)
        raise InputError(_missing(condition))
    if condition.is_label:
        return _labels(condition, given)
    if not condition.shape:
        return _numbers(condition, given)
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:  # of NumPy, for lists that are no array
        raise InputError(f"condition {condition.name} is no array of numbers ({error})") from None
    if array.shape == condition.shape:
        array = array[None]
    if array.ndim != len(condition.shape) + 1 or len(array) == 0:
        raise InputError(
            f"condition {condition.name} has shape {list(array.shape)}, expected {list(condition.shape)}, or [n, …] of "
            "n such"
        )
    return check_states(array, (len(array), *condition.shape), f"condition {condition.name}")


def _missing(condition: Condition) -> str:
    if condition.is_label:
        assert condition.classes is not None
        null = "" if condition.null is None else f", {NULL} for no class,"
        return (
            f"the network draws by class and was given none; give --class with classes 0 to {condition.classes - 1}"
            f"{null} or {ALL} (classes=)"
        )
    how = f"--condition {condition.name}=FILE.npy" if condition.shape else f"--condition {condition.name}=NUMBER"
    return (
        f"the network is conditioned on {condition.name} (float32 {list(condition.shape)}) and was given none; give "
        f"{how} (conditions={{{condition.name!r}: …}})"
    )


def _labels(condition: Condition, given: object) -> np.ndarray:
    assert condition.classes is not None
    if isinstance(given, str):
        if given != ALL:
            raise InputError(f"classes are {given!r}, expected a list of whole numbers, or {ALL}")
        own = [label for label in range(condition.classes) if label != condition.null]
        return np.array(own or [0], dtype=np.int64)
    entries = given.tolist() if isinstance(given, np.ndarray) else given
    entries = list(entries) if isinstance(entries, Sequence | range) else [entries]
    if not entries:
        raise InputError("classes are an empty list, expected at least one")
    labels, known = [], f"0 to {condition.classes - 1}"
    for entry in entries:
        if entry is None and condition.null is None:
            raise InputError(f"class {NULL} was given, but the network has no null class; give {known}")
        label = condition.null if entry is None else entry
        if not is_whole(label) or not 0 <= label < condition.num_labels:
            null = "" if condition.null is None else f", or {NULL}"
            raise InputError(f"class is {shown(label)}, expected a whole number from {known}{null}")
        labels.append(int(label))
    return np.array(labels, dtype=np.int64)


def _numbers(condition: Condition, given: object) -> np.ndarray:
    entries = given.tolist() if isinstance(given, np.ndarray) else given
    entries = list(entries) if isinstance(entries, Sequence) and not isinstance(entries, str) else [entries]
    if not entries:
        raise InputError(f"{condition.name} is an empty list, expected at least one number")
    for entry in entries:
        if not is_finite_number(entry) or abs(entry) > _MAX_FLOAT32:
            raise InputError(f"{condition.name} is {shown(entry)}, expected a finite number")
    return np.array(entries, dtype=np.float32)
