"""Compiled models in the user's cache folder, so that the second start is faster."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from commands.whole_files import whole_folder
from diffusion.errors import InputError
from runtime.engines.cache_folder import user_cache_folder

# A compiled model is as large as its weights, and every batch size has one of its own.
MOST_CACHE_BYTES = 2**31
_ABANDONED_SECONDS = 86_400

Compiled = TypeVar("Compiled")


def compile_cached(key: str, compile_in: Callable[[Path | None], Compiled]) -> Compiled:
    """Compile with a cache folder of the key's own; a folder appears whole, or not at all.

    Two programs that start at once never read what the other has half written: each compiles, and one folder stays.

    Args:
        key: everything that the compiled model depends on.
        compile_in: compiles a model with this folder as the backend's cache; None where no folder can be written.
    """
    folder = user_cache_folder("models") / hashlib.sha256(key.encode()).hexdigest()[:32]
    if folder.is_dir():
        with contextlib.suppress(OSError):
            os.utime(folder)  # the least recently used go first
        return compile_in(folder)
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = stack.enter_context(whole_folder(folder))
        except (InputError, OSError):  # a read-only home is no reason not to run
            return compile_in(None)
        compiled = compile_in(temporary)
        with contextlib.suppress(InputError, OSError):
            stack.close()
            _remove_oldest(folder)
    return compiled


def _remove_oldest(newest: Path) -> None:
    folders = [folder for folder in newest.parent.iterdir() if folder.is_dir()]
    folders.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    total = 0
    for folder in folders:
        if folder.name.startswith("."):  # still being written, or left by a program that was killed
            outdated = time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS
        else:
            total += sum(file.stat().st_size for file in folder.iterdir())
            outdated = total > MOST_CACHE_BYTES and folder != newest
        if outdated:
            shutil.rmtree(folder, ignore_errors=True)
