"""This process and its machine: the memory there is for it, its age, and how its threads wait."""

from __future__ import annotations

import os
import time
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
    """Refuse what cannot fit before it is taken: Linux promises more than it has, and then kills the program.

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


def seconds_since_process_start() -> float:
    """Wall time since the operating system made this process, to a hundredth of a second."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def let_idle_threads_sleep() -> None:
    """Let idle OpenMP threads sleep, unless the user chose otherwise by OMP_WAIT_POLICY; before torch is imported.

    By default they spin. On cores that other processes or another library's threads need as well, that makes a
    training step up to forty times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
