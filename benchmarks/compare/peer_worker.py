"""A peer in a process of its own: what it takes to start and how much memory it needs are then its own too.

Reads one command a line from standard input and answers with one JSON object a line on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from commands.system import seconds_since_process_start


def serve(name: str, folder: Path, batch_size: int, num_steps: int, threads: int) -> None:
    """Start a peer, run its first step, then do as told until standard input ends."""
    from benchmarks.compare.peers import make_peer

    peer = make_peer(name, folder, batch_size, num_steps, threads)
    peer.first_step()
    _answer({"first_step_seconds": seconds_since_process_start(), "timesteps": peer.timesteps})
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        begin = time.perf_counter()
        if command == "chain":
            peer.chain()
        elif command == "network":
            peer.network()
        elif command == "images":
            np.save(argument, peer.images())
        seconds = time.perf_counter() - begin
        _answer({"seconds": seconds, "peak_bytes": peak_resident_bytes()})


def peak_resident_bytes() -> int:
    """The most memory this process has had. Not getrusage's, which counts what the parent had at the fork."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def _answer(content: dict[str, Any]) -> None:
    print(json.dumps(content), file=_out, flush=True)


if __name__ == "__main__":
    # Libraries print to standard output; the answers must not be mixed with that.
    _out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6]))
