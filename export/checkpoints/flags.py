"""What a checkpoint's tensors cannot say, told by the flags of the project that trained it, in its own spelling."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusion.errors import InputError
from diffusion.number_checks import real_number, shown, whole_number

# What the projects' own parsers take for a truth value.
_TRUE, _FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")
_DEST = "checkpoint_flag_"
_KINDS = {
    int: ("N", "a whole number"),
    float: ("X", "a number"),
    bool: ("BOOL", "True or False"),
    str: ("TEXT", "text"),
}


@dataclass(frozen=True)
class CheckpointFlag:
    """One flag of another project.

    Attributes:
        name: as the project spells it, without the hyphens.
        kind: `int`, `float`, `bool` or `str`.
        help: one line.
        choices: of a `str`, if not any.
    """

    name: str
    kind: type
    help: str
    choices: tuple[str, ...] = ()

    def value(self, given: object) -> Any:
        """The value of the flag from what was typed, or from what a caller in Python passed.

        Raises:
            InputError: no value of its kind.
        """
        refused = InputError(f"--{self.name} is {shown(given)}, expected {self._expected}")
        if self.kind is bool and isinstance(given, bool):
            return given
        if self.kind is bool and isinstance(given, str) and given.lower() in _TRUE + _FALSE:
            return given.lower() in _TRUE
        if self.kind in (int, float):
            check = whole_number if self.kind is int else real_number
            try:
                return check(self.kind(given) if isinstance(given, str) else given, f"--{self.name}")
            except ValueError:  # InputError among them
                raise refused from None
        if self.kind is str and isinstance(given, str) and (not self.choices or given in self.choices):
            return given
        raise refused

    @property
    def metavar(self) -> str:
        """What its value is called in the help."""
        return "|".join(self.choices) or _KINDS[self.kind][0]

    @property
    def _expected(self) -> str:
        return f"one of {', '.join(self.choices)}" if self.choices else _KINDS[self.kind][1]


# Flags that several projects have, under one name.
IMAGE_SIZE = CheckpointFlag("image_size", int, "height and width")
EMA = CheckpointFlag("ema", bool, "take the moving average, where a file holds both (default True)")
NUM_RES_BLOCKS = CheckpointFlag("num_res_blocks", int, "residual blocks per level")


@dataclass(frozen=True)
class GivenFlags:
    """What the user said of a checkpoint.

    Attributes:
        values: of the project's flags, by name; those of a published model among them.
        model: the published model's name, if one was given.
        typed: the names of the flags that were given one by one.
    """

    values: Mapping[str, Any]
    model: str | None = None
    typed: frozenset[str] = frozenset()

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a flag, or the default where it is not given."""
        return self.values.get(name, default)

    def origin(self, name: str) -> str:
        """Where the value came from, for messages."""
        if name in self.typed:
            return f"--{name}"
        return f"--model {self.model}" if name in self.values else f"default of --{name}"

    def require(self, path: object, *names: str, hint: str = "") -> None:
        """Raises InputError, naming all that are missing, unless every one of these flags has a value."""
        missing = [f"--{name}" for name in names if name not in self.values]
        if missing:
            raise InputError(
                f"{path}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not given, which no tensor of "
                f"the checkpoint tells; give what it was trained with{hint}"
            )


def add_flags(parser: argparse.ArgumentParser, title: str, description: str, flags: Iterable[CheckpointFlag]) -> None:
    """Add flags in a group of their own. Their values are checked later, by `CheckpointFlag.value`."""
    group = parser.add_argument_group(title, description)
    for flag in flags:
        group.add_argument(f"--{flag.name}", dest=_DEST + flag.name, metavar=flag.metavar, help=flag.help)


def parsed_flags(args: argparse.Namespace) -> dict[str, str]:
    """The flags of `add_flags` that were given, by name."""
    return {
        name.removeprefix(_DEST): value
        for name, value in vars(args).items()
        if name.startswith(_DEST) and value is not None
    }
