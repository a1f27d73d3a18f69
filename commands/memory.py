"""Is there memory for it? Asked before it is taken: Linux promises more than it has, and then kills the program."""

from __future__ import annotations

import os
from pathlib import Path

from diffusion.errors import InputError


def available_bytes() -> int:
    """Memory that can be had without swapping, by Linux' own estimate, which counts what the page cache gives back."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(what: str, needed_bytes: int, remedy: str) -> None:
    """Refuse what cannot fit.

    Args:
        what: that is to be held, as in "--num 10: the samples".
        needed_bytes: all of it.
        remedy: what to do instead.

    Raises:
        InputError: more than there is.
    """
    available = available_bytes()
    if needed_bytes > available:
        raise InputError(f"{what}: needs {gib(needed_bytes)} of memory, {gib(available)} are available; {remedy}")


def gib(size_bytes: int) -> str:
    """A size in words."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes < 2**90 else "more than 2^60 GiB"
