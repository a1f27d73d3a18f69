"""How threads of an OpenMP runtime wait for work. To be said before torch is imported, which loads one."""

from __future__ import annotations

import os


def let_idle_threads_sleep() -> None:
    """Let idle OpenMP threads sleep, unless the user chose otherwise by OMP_WAIT_POLICY.

    By default they spin. On cores that other processes or another library's threads need as well, that makes a
    training step up to forty times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
