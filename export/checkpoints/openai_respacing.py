"""`--timestep_respacing` of OpenAI's scripts: which of the T timesteps a chain visits, and what draws them here."""

from __future__ import annotations

import re

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.spacing import spaced_timesteps

# Longer lists are not printed: they are every timestep of a section, or nearly.
_MAX_LISTED = 100


def respaced_timesteps(respacing: str, total: int) -> list[int]:
    """The timesteps, rising.

    `N` and `N,M,…` cut 0..T−1 into sections of as equal a length as can be and take that many of each, from its first
    timestep to its last. `ddimN` takes every k-th from 0, where some k gives N of them.

    Args:
        respacing: the flag.
        total: T.

    Raises:
        InputError: another form, or more timesteps than there are.
    """
    expected = f"expected ddimN, or numbers of timesteps with commas between them, of {total} in all"
    refused = InputError(f"--timestep_respacing is {respacing!r}, {expected}")
    strided = re.fullmatch(r"ddim(\d{1,6})", respacing)
    if strided:
        num = int(strided[1])
        stride = next((stride for stride in range(1, total) if -(-total // stride) == num), None)
        if stride is None:
            raise refused
        return list(range(0, total, stride))
    if not re.fullmatch(r"\d{1,6}(,\d{1,6})*", respacing):
        raise refused
    counts = [int(part) for part in respacing.split(",")]
    length, longer = divmod(total, len(counts))
    taken: list[int] = []
    first = 0
    for index, count in enumerate(counts):
        size = length + (index < longer)
        if not 1 <= count <= size:
            raise refused
        stride_of_section = (size - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0  # added up, as there: the sums decide how halves are rounded
        for _ in range(count):
            taken.append(first + round(place))
            place += stride_of_section
        first += size
    return taken


def respacing_flags(respacing: str, schedule: NoiseSchedule) -> str:
    """The flags of `runtime.sample` that visit the same timesteps. Raises InputError as `respaced_timesteps`."""
    timesteps = respaced_timesteps(respacing, schedule.num_train_timesteps)
    for spacing in ("linspace", "leading"):
        if sorted(map(int, spaced_timesteps(spacing, len(timesteps), schedule))) == timesteps:
            return f"--steps {len(timesteps)} --spacing {spacing}"
    listed = ",".join(map(str, reversed(timesteps[-_MAX_LISTED:])))
    return f"--timesteps {listed}{',…' if len(timesteps) > _MAX_LISTED else ''}"
