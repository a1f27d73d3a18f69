"""`make torture`: runs in shards that are killed at random moments and resumed, until they are done; many times over.

After every kill, what is visible is checked by its hashes. In the end the images are those of a run left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from runtime.sample import main as sample
from tests.runtime.gaussian_folder import NETWORK
from tests.runtime.runs.sharded_runs import hidden, images_of, started, visible, workers_of

RUN = ["--num", "300", "--start", "13", "--batch-size", "4", "--shard-size", "30", "--backend", "onnxruntime"]


def torture(kills: int, steps: int, seed: int) -> str:
    """Kill so many times, in the working folder, which becomes full of runs; return what happened, in a line.

    Args:
        kills: in all.
        steps: of each chain: how long a run takes.
        seed: of the moments.
    """
    choose = random.Random(seed)
    NETWORK.save_onnx(Path("unet.onnx"))
    run = [*RUN, "--steps", str(steps), "--format"]
    expected = {}
    for format_ in ("npz", "png", "tar"):
        assert sample([*run, format_, "--out", f"whole-{format_}"]) == 0
        expected[format_] = images_of(f"whole-{format_}")
    killed = {"parent": 0, "worker": 0}
    number, longest = 0, 4.0
    while sum(killed.values()) < kills:
        format_, out = choose.choice(sorted(expected)), f"run{number}"
        number += 1
        while True:
            workers = choose.choice([0, 0, 1, 2])
            flags = ["--workers", str(workers)] if workers else []
            process = started(*run, format_, "--out", out, "--resume", *flags)
            victim = "nobody"
            if sum(killed.values()) < kills:
                time.sleep(choose.uniform(0.2, longest))
                children = workers_of(process.pid)
                victim = "worker" if children and choose.random() < 0.5 else "parent"
                _kill(choose.choice(children) if victim == "worker" else process.pid)
            _, err = process.communicate(timeout=600)
            if Path(out, "run.json").exists():
                assert set(images_of(out)) <= set(expected[format_])
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, err
            killed[victim] += 1
            if not Path(out, "run.json").exists():  # a machine so slow that nothing had begun
                longest = min(60.0, 1.5 * longest)
        killed["worker"] += err.count("ended (signal 9)")
        assert images_of(out) == expected[format_]
        assert visible(out) == visible(f"whole-{format_}")
        assert not {name for name in hidden(out) if not name.endswith(".lock")}
    return f"{number} runs, {killed['parent']} kills of a parent, {killed['worker']} of a worker: the same images"


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it had ended
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        print(torture(chosen.kills, chosen.steps, chosen.seed))
