"""Small files in the user's cache folder: what was found out once about an engine on this machine.

A file's name holds the hash of its content, so that a damaged file is never read; nor is one that others could write.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from commands.whole_files import whole_file
from diffusion.errors import InputError

# Of one kind; the files least recently written go first.
MAX_BYTES = 2**28
# It is no folder, so that nothing is ever found in it or made in it, whoever asks.
NOWHERE = Path(os.devnull)


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
        _remove_oldest(path)
    except (InputError, OSError):
        return False
    return True


def is_private(path: Path) -> bool:
    """Whether a file or folder is this user's and nobody else may write there; a symbolic link is not."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return not stat.S_ISLNK(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _name(key: str) -> str:
    return _hash(key.encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _remove_oldest(newest: Path) -> None:
    files = [file for file in newest.parent.iterdir() if file.is_file() and not file.name.startswith(".")]
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > MAX_BYTES and file != newest:
            with contextlib.suppress(OSError):
                file.unlink()
