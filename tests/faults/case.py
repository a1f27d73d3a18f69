"""A command that replaces an older result of its own, and what may be found wherever it is stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from commands.file_sets import FileSet

Contents = Mapping[str, bytes]


@dataclass(frozen=True)
class Case:
    """A command, run in a folder that holds the older result; its files are beside that folder, in `../inputs`.

    Attributes:
        name: of the case.
        main: of the command; returns the exit code.
        old, new: arguments for the older result and for the one that replaces it; no `old` where nothing is replaced.
        again: arguments for after the fault, each in its turn.
        check: raises AssertionError for what is neither the old result nor the new one; given the folder, and what it
            holds after `old` and after `new`, by `contents`.
        ends: raises AssertionError for what is not the new result.
        prepare: makes the inputs.
        within: a context in which both commands run.
        in_parent: whether they run once before the faults in the process that is forked, for what they import and what
            `within` keeps of them.
    """

    name: str
    main: Callable[[list[str]], int]
    old: Sequence[str]
    new: Sequence[str]
    again: Sequence[Sequence[str]]
    check: Callable[[Path, Contents, Contents], None]
    ends: Callable[[Path, Contents], None]
    prepare: Callable[[Path], None]
    within: Callable[[str], contextlib.AbstractContextManager[None]] = lambda variant: contextlib.nullcontext()
    in_parent: bool = False


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder that have no hidden part in their names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found[str(name)] = path.read_bytes()
    return found


def hidden(folder: Path) -> list[str]:
    """Entries with hidden names that are not locks, which anybody may take."""
    found = [path.name for path in folder.rglob(".*") if path.name.startswith(".")]
    return [name for name in found if not name.endswith(".lock")]


def same(folder: Path, new: Contents) -> None:
    assert contents(folder) == new
    assert not hidden(folder)


def in_set(files: FileSet, folder: Path, old: Contents, new: Contents) -> None:
    """Readers of ours see all that is old or all that is new; others never see old entries beside new ones."""

    def below(where: Callable[[str], Path]) -> dict[str, bytes]:
        found = {}
        for entry in files.entries:
            path, name = where(entry), str((files.folder / entry).relative_to(folder))
            if path.is_dir():
                found |= {f"{name}/{inside}": content for inside, content in contents(path).items()}
            elif path.exists():
                found[name] = path.read_bytes()
        return found

    current, named = below(files.current), {str((files.folder / entry).relative_to(folder)) for entry in files.entries}
    old, new = (
        {name: content for name, content in result.items() if any(name == n or name.startswith(n + "/") for n in named)}
        for result in (old, new)
    )
    first = str((files.folder / files.entries[0]).relative_to(folder))
    visible = below(lambda entry: files.folder / entry)
    assert current in (old, new), sorted(current)
    assert not old or first in visible
    changed = {name for name in visible if name != first and old.get(name) != new.get(name)}
    assert all(visible[name] == old.get(name) for name in changed) or all(
        visible[name] == new.get(name) for name in changed
    ), sorted(changed)
