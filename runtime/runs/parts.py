"""Which part of a run's shards one of several machines draws: `i/n`, or what the scheduler's variables say."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from diffusion.errors import InputError

_TEXT = re.compile(r"(\d{1,9})/(\d{1,9})")
_SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")


@dataclass(frozen=True)
class Part:
    """Part `index`, from 0, of `count`: the shards with the places index, index + count, …"""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Part:
        """The part that `--shard` says.

        Args:
            text: `i/n`, or `auto` for what the variables of a Slurm array job or of a Kubernetes indexed job say.
            environment: those variables.

        Raises:
            InputError: no such part, or variables that are missing or make no sense.
        """
        if text == "auto":
            return _from_environment(environment)
        match = _TEXT.fullmatch(text)
        if match is None or not int(match[1]) < int(match[2]):
            raise InputError(f"--shard is {text!r}, expected auto or i/n, from 0/n to n-1/n, such as 0/8")
        return cls(int(match[1]), int(match[2]))


def _from_environment(environment: Mapping[str, str]) -> Part:
    if _SLURM[0] in environment:
        index, count, lowest, highest = (_whole(environment, name) for name in _SLURM)
        step = _whole(environment, "SLURM_ARRAY_TASK_STEP") if "SLURM_ARRAY_TASK_STEP" in environment else 1
        if step < 1 or highest != lowest + step * (count - 1) or (index - lowest) % step or index > highest:
            raise InputError(
                f"--shard auto: SLURM_ARRAY_TASK_ID {index} is one of {count} tasks from {lowest} to {highest}, "
                "expected all of a range, as of sbatch --array=0-7; or give --shard i/n"
            )
        return Part((index - lowest) // step, count)
    if "JOB_COMPLETION_INDEX" in environment:
        index, count = (_whole(environment, name) for name in ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"))
        if index >= count:
            raise InputError(
                f"--shard auto: JOB_COMPLETION_INDEX is {index}, expected less than JOB_COMPLETIONS, {count}"
            )
        return Part(index, count)
    raise InputError(
        "--shard auto: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set; start it in an array job of Slurm "
        "or an indexed job of Kubernetes, or give --shard i/n"
    )


def _whole(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not re.fullmatch(r"\d{1,9}", text):
        found = repr(text) if name in environment else "not set"
        raise InputError(f"--shard auto: {name} is {found}, expected a whole number; set it, or give --shard i/n")
    return int(text)
