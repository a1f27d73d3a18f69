"""How long this process has been running, imports included."""

from __future__ import annotations

import os
import time
from pathlib import Path


def seconds_since_process_start() -> float:
    """Wall time since the operating system made this process, to a hundredth of a second."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
