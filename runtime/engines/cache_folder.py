"""The user's cache folder: what was found out once about an engine on this machine, and the models compiled for it.

Nothing damaged is read, nor what others could write. A small file's name holds the hash of its content. A backend
trusts what lies in its cache, and one flipped bit there moves x_0 by as much as the data are wide: so every file of a
compiled model is hashed and synced when it is written, and hashed again before the backend sees it; what differs is
compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from commands.whole_files import whole_file, whole_folder
from diffusion.errors import InputError

# Of small files of one kind, and of compiled models: these are as large as their weights, and every batch size has one
# of its own. What was not used for longest goes first.
MAX_BYTES = 2**28
MAX_CACHE_BYTES = 2**31
CONTENTS = "contents.json"
"""In the folder of each model, written after all else: the key, and the SHA-256 of every other file by name."""

# Not a folder: nothing is found in it, and nothing can be made in it.
NOWHERE = Path(os.devnull)
_ABANDONED_SECONDS = 86_400

Compiled = TypeVar("Compiled")


def user_cache_folder(kind: str) -> Path:
    """The folder of the project for one kind of content; it need not exist.

    Where no home folder is known, as of a user without an entry and without HOME, nothing can be kept there.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG Base Directory Specification: a relative path is to be ignored.
    root = Path(base) if base.startswith("/") else _home_cache()
    return root / "ddpm-rt" / kind


def can_keep() -> bool:
    """Whether there is a place for a cache folder at all."""
    return NOWHERE not in user_cache_folder("any").parents


def _home_cache() -> Path:
    try:
        home = Path.home() if os.environ.get("HOME") != "" else NOWHERE
    except RuntimeError:
        home = NOWHERE
    return home / ".cache" if home.is_absolute() else NOWHERE


def read_kept(kind: str, key: str) -> bytes | None:
    """What `keep` wrote; None where there is nothing that can be read, or not what was written.

    Args:
        kind: such as `verified`, a folder of its own.
        key: everything that the content depends on.
    """
    folder = user_cache_folder(kind)
    if not is_private(folder.resolve()):
        return None
    for path in folder.glob(f"{_name(key)}.*"):
        with contextlib.suppress(OSError):
            if is_private(path) and path.is_file():
                content = path.read_bytes()
                if path.suffix == f".{_hash(content)}":
                    return content
    return None


def keep(kind: str, key: str, content: bytes) -> bool:
    """Write a file that appears whole; whether it could be written. A read-only home is no reason not to run."""
    folder = user_cache_folder(kind)
    path = folder / f"{_name(key)}.{_hash(content)}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private(folder.resolve()):
            return False
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
        path.chmod(0o600)
        for old in folder.glob(f"{_name(key)}*"):
            if old != path:
                old.unlink()
        _remove_oldest(path, MAX_BYTES)
    except (InputError, OSError):
        return False
    return True


def is_private(path: Path) -> bool:
    """Whether a file or folder belongs to this user and no other user may write to it; never for a symbolic link."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return not stat.S_ISLNK(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _name(key: str) -> str:
    return _hash(key.encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def compile_cached(key: str, compile_in: Callable[[Path | None], Compiled]) -> Compiled:
    """Compile with a cache folder of the key's own; a folder appears whole, or not at all.

    Two programs that start at once never read what the other has half written: each compiles, and one folder stays.
    A folder that is not what was written there, or that others may write to, is not read.

    Args:
        key: everything that the compiled model depends on.
        compile_in: compiles a model with this folder as the backend's cache; None where no folder can be written, or
            where others can write.
    """
    folder = user_cache_folder("models") / _name(key)
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_private(folder.parent.resolve()):
                return compile_in(None)
            if _is_as_written(folder, key):
                with contextlib.suppress(OSError):
                    os.utime(folder)  # the least recently used go first
                return compile_in(folder)
            if folder.is_symlink() or folder.is_file():
                folder.unlink()
            temporary = stack.enter_context(whole_folder(folder))
        except (InputError, OSError):  # a read-only home is no reason not to run
            return compile_in(None)
        compiled = compile_in(temporary)
        with contextlib.suppress(InputError, OSError):
            _seal(temporary, key)
            stack.close()
            _remove_oldest(folder, MAX_CACHE_BYTES)
    return compiled


def _seal(folder: Path, key: str) -> None:
    """Make what a backend wrote this user's alone, sync it, and write down its hashes."""
    folder.chmod(0o700)
    hashes = {}
    for file in folder.iterdir():
        file.chmod(0o600)
        with file.open("rb") as written:
            hashes[file.name] = hashlib.file_digest(written, "sha256").hexdigest()
            os.fsync(written.fileno())
    with (folder / CONTENTS).open("w", encoding="utf-8") as contents:
        json.dump({"key": key, "sha256": hashes}, contents)
        contents.flush()
        os.fchmod(contents.fileno(), 0o600)
        os.fsync(contents.fileno())


def _is_as_written(folder: Path, key: str) -> bool:
    """Whether a folder holds what `_seal` saw there for this key, all of it and nothing else."""
    try:
        if not is_private(folder):
            return False
        contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        found = {}
        for file in folder.iterdir():
            if not is_private(file) or not stat.S_ISREG(file.lstat().st_mode):
                return False
            if file.name != CONTENTS:
                with file.open("rb") as written:
                    found[file.name] = hashlib.file_digest(written, "sha256").hexdigest()
        return bool(contents == {"key": key, "sha256": found})
    except (OSError, ValueError):
        return False


def _remove_oldest(newest: Path, max_bytes: int) -> None:
    """Leave those files or folders beside the newest that were used last and fit, and what is still being written."""
    entries = [(entry.lstat().st_mtime, entry) for entry in newest.parent.iterdir()]
    total = 0
    for used, entry in sorted(entries, reverse=True):
        if entry.name.startswith("."):  # still being written, or left by a program that was killed
            outdated = time.time() - used > _ABANDONED_SECONDS
        else:
            files = [entry] if entry.is_file() else [file for file in entry.iterdir() if file.name != CONTENTS]
            total += sum(file.lstat().st_size for file in files)
            outdated = total > max_bytes and entry != newest
        if outdated and entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif outdated:
            with contextlib.suppress(OSError):
                entry.unlink()
