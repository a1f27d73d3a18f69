"""Small files in the user's cache folder: what was found out once about an engine on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from commands.whole_files import whole_file
from diffusion.errors import InputError

# Of one kind; the files least recently written go first.
MOST_BYTES = 2**28
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
    """What `keep` wrote; None where there is nothing that can be read.

    Args:
        kind: such as `verified`, a folder of its own.
        key: everything that the content depends on.
    """
    try:
        return _path(kind, key).read_bytes()
    except OSError:
        return None


def keep(kind: str, key: str, content: bytes) -> bool:
    """Write a file that appears whole; whether it could be written. A read-only home is no reason not to run."""
    path = _path(kind, key)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
        _remove_oldest(path)
    except (InputError, OSError):
        return False
    return True


def _path(kind: str, key: str) -> Path:
    return user_cache_folder(kind) / hashlib.sha256(key.encode()).hexdigest()[:32]


def _remove_oldest(newest: Path) -> None:
    files = [file for file in newest.parent.iterdir() if file.is_file() and not file.name.startswith(".")]
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > MOST_BYTES and file != newest:
            with contextlib.suppress(OSError):
                file.unlink()
