"""Compiled models in the user's cache folder, so that the second start is faster.

A backend trusts what lies in its cache: one flipped bit there moves x_0 by as much as the data are wide. So every file
is hashed and synced when it is written, and hashed again before the backend sees it; what differs is compiled anew.
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

from commands.whole_files import whole_folder
from diffusion.errors import InputError
from runtime.engines.cache_folder import is_private, user_cache_folder

# A compiled model is as large as its weights, and every batch size has one of its own.
MAX_CACHE_BYTES = 2**31
CONTENTS = "contents.json"
"""In each folder, written after all else: the key, and the SHA-256 of every other file by name."""

_ABANDONED_SECONDS = 86_400

Compiled = TypeVar("Compiled")


def compile_cached(key: str, compile_in: Callable[[Path | None], Compiled]) -> Compiled:
    """Compile with a cache folder of the key's own; a folder appears whole, or not at all.

    Two programs that start at once never read what the other has half written: each compiles, and one folder stays.
    A folder that is not what was written there, or that others may write to, is not read.

    Args:
        key: everything that the compiled model depends on.
        compile_in: compiles a model with this folder as the backend's cache; None where no folder can be written, or
            where others can write.
    """
    folder = user_cache_folder("models") / hashlib.sha256(key.encode()).hexdigest()[:32]
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
            _remove_oldest(folder)
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


def _remove_oldest(newest: Path) -> None:
    folders = [folder for folder in newest.parent.iterdir() if folder.is_dir()]
    folders.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    total = 0
    for folder in folders:
        if folder.name.startswith("."):  # still being written, or left by a program that was killed
            outdated = time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS
        else:
            total += sum(file.lstat().st_size for file in folder.iterdir() if file.name != CONTENTS)
            outdated = total > MAX_CACHE_BYTES and folder != newest
        if outdated:
            shutil.rmtree(folder, ignore_errors=True)
