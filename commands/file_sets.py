"""Files and folders that belong together and change together: all of them are the old ones, or all the new ones.

Each takes its name by a rename of its own, and a program may be killed between two of these. So one rename decides
before: that of a hidden folder which holds all of the new entries, synced. From then on a reader takes what lies there
(`FileSet.current`), and whoever writes next ends what was begun (`FileSet.settle`). Programs that know nothing of this
never see old entries beside new ones: the old ones go first. What they see meanwhile is incomplete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from commands.whole_files import cannot_write, sync_contents, sync_folder, temporary_folder
from diffusion.errors import InputError

_ABSENT, _OLD = ".absent", ".old"


@dataclass(frozen=True)
class FileSet:
    """Entries of a folder that change together. Whoever changes them holds a lock.

    Attributes:
        folder: that holds them.
        name: of the set.
        entries: names of its files and folders. The first is a file, by which others know the set: it is replaced by
            one rename, so that it is always there.
    """

    folder: Path
    name: str
    entries: tuple[str, ...]

    @property
    def _pending(self) -> Path:
        return self.folder / f".{self.name}.ddpm-rt.new"

    def current(self, entry: str) -> Path:
        """Where an entry of the set is, for reading; nothing is there if the set has none of this name."""
        return self._pending / entry if self._waits(entry) else self.folder / entry

    @contextlib.contextmanager
    def replaced(self) -> Iterator[Path]:
        """Yield an empty folder for the new entries, which take the place of all the old ones on success.

        Entries that are not written there are removed.

        Raises:
            InputError: they cannot be written. Then the old ones are there, or, where that is said, the new ones.
        """
        self.settle()
        with temporary_folder(self.folder / self.name) as temporary:
            try:
                yield temporary
                for entry in self.entries:
                    if not (temporary / entry).exists():
                        (temporary / (entry + _ABSENT)).touch()
                sync_contents(temporary)
                temporary.replace(self._pending)
                sync_folder(self.folder)
            except OSError as error:
                raise cannot_write(self.folder / self.entries[0], error) from error
        self.settle()

    def settle(self) -> None:
        """End what a program began that was killed as it replaced the entries.

        Raises:
            InputError: the folder cannot be written; what is there can be read all the same, and settled later.
        """
        pending = self._pending
        try:
            if not stat.S_ISDIR(pending.lstat().st_mode):
                raise InputError(f"{pending}: is no folder of new files, as is expected there; remove it")
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unsettled(error) from error
        try:
            for entry in self.entries[1:]:
                # What has taken its place already is in `pending` no longer.
                if self._waits(entry):
                    with contextlib.suppress(FileNotFoundError):
                        (self.folder / entry).replace(pending / (entry + _OLD))
                    (pending / (entry + _ABSENT)).unlink(missing_ok=True)
            for entry in self.entries:
                with contextlib.suppress(FileNotFoundError):
                    (pending / entry).replace(self.folder / entry)
            sync_folder(self.folder)
            shutil.rmtree(pending, ignore_errors=True)
        except OSError as error:
            raise self._unsettled(error) from error

    def _waits(self, entry: str) -> bool:
        return any(os.path.lexists(self._pending / name) for name in (entry, entry + _ABSENT))

    def _unsettled(self, error: OSError) -> InputError:
        return InputError(
            f"{self.folder / self.entries[0]}: the new files are in {self._pending} and cannot take their places "
            f"({error.strerror or error}); run the same command again"
        )
