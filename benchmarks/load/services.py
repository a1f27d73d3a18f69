"""The services that are compared, each a process of its own: started, watched and ended.

Run as a program, this is ours with the batches of a policy: `… benchmarks.load.services POLICY FLAGS OF runtime.serve`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.serve.policies import POLICIES
from ddpm_rt.own_packages import command_of_own_process
from diffusion.errors import InputError
from runtime.serve.guard import TOKEN_VARIABLE

REFERENCE = "slots"
PIPELINE = "diffusers"
SERVICES = (*POLICIES, PIPELINE)

_START_S = 180.0
_STOP_S = 60.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


class RunningService:
    """A service on a port of this machine.

    Args:
        name: one of `SERVICES`.
        engine: for ours.
        checkpoint: for diffusers' pipeline.
        slots: for ours.

    Raises:
        InputError: it does not start; with what it said last.
    """

    def __init__(self, name: str, engine: Path, checkpoint: Path | None, slots: int) -> None:
        self.name = name
        if name == PIPELINE:
            words = command_of_own_process("benchmarks.load.pipeline_service", str(checkpoint))
        else:
            flags = ("--engine", str(engine), "--slots", str(slots), "--port", "0")
            words = command_of_own_process("benchmarks.load.services", name, *flags)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `stop`; a pipe would fill up
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=self._log, env=environment)
        try:
            self.url = self._wait_for_url()
        except BaseException:
            self.stop()
            raise

    def _wait_for_url(self) -> str:
        give_up_at = time.monotonic() + _START_S
        while time.monotonic() < give_up_at and self._process.poll() is None:
            if found := re.search(r"http://127\.0\.0\.1:\d+", self._said()):
                return found[0]
            time.sleep(0.05)
        last = (self._said().strip().splitlines() or ["nothing"])[-1]
        raise InputError(f"the service {self.name} did not start; it said: {last}")

    def _said(self) -> str:
        # Its own position: the process writes through the same open file.
        return os.pread(self._log.fileno(), 1 << 16, 0).decode("utf-8", "replace")

    def memory_bytes(self) -> int:
        """Resident now."""
        return int(self._proc("statm").split()[1]) * _PAGE

    def cpu_seconds(self) -> float:
        """Of all its threads so far."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def _proc(self, name: str) -> str:
        return Path(f"/proc/{self._process.pid}/{name}").read_text(encoding="utf-8", errors="replace")

    @property
    def runs(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it; returns when it has ended."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


if __name__ == "__main__":
    from runtime.serve.__main__ import main

    raise SystemExit(main(sys.argv[2:], POLICIES[sys.argv[1]]))
