"""One bad input: how its file is made, who reads it, and what must be said of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

Make = Callable[[Path], None]


def nothing(folder: Path) -> None:
    """Leave the folder as it is: the command line alone is bad."""


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        name: unique; the table and the row of it.
        command: module behind `python -m`.
        argv: its arguments, in a copy of the folder that `tests.corpus.folder` fills.
        words: which the line of error must hold, each one of `a|b` where there are several ways to say it.
        make: changes the folder before the command starts.
        codes: that the command may end with.
    """

    name: str
    command: str
    argv: tuple[str, ...]
    words: tuple[str, ...]
    make: Make = nothing
    codes: tuple[int, ...] = (2,)

    def lacking(self, line: str) -> list[str]:
        """Which of `words` a line does not hold."""
        return [word for word in self.words if not re.search(word, line)]


def case(name: str, line: str | list[str], words: Iterable[str], make: Make = nothing, *codes: int) -> Case:
    """A case from a command line in words."""
    command, *argv = line.split() if isinstance(line, str) else line
    return Case(name, command, tuple(argv), tuple(words), make, codes or (2,))
