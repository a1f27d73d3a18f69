"""States kept along the way, from noise to image: of x, and of the x_start predicted from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from commands.file_sets import FileSet
from diffusion.errors import InputError
from diffusion.number_checks import shown, whole_number
from diffusion.process import SampleShape
from diffusion.step_table import StepTable
from runtime.images import draw_grid, quantize

TRAJECTORY_FILES = ("trajectory_x.png", "trajectory_x_start.png", "trajectory.npz", "trajectory.webp")

# Enough to see how chains differ; more would only take memory.
MAX_SAMPLES = 8
# The animation takes about four seconds, and stays on the images for two.
_ANIMATION_MS, _LAST_FRAME_MS = 4000, 2000
_FRAME_MS = (40, 500)
_MAX_WEBP_PIXELS = 16383  # of a side


def trajectory_files(folder: Path) -> FileSet:
    """Those that belong together in the folder of a run."""
    return FileSet(folder, "trajectory", TRAJECTORY_FILES)


class Trajectory:
    """K states of the first samples of a run, evenly spaced over its steps, first and last included.

    State 0 is what the chain begins with, state R, after all rows, is x_0. Beside state i of x stands the
    x_start that the network predicts from it; beside the last one, the last prediction.

    Args:
        table: the rows.
        shape: of one sample.
        num_states: K, 2..R+1.
        num: samples of the run; at most `MAX_SAMPLES` of them are kept.

    Attributes:
        timesteps: int64 [K], training timestep of each state; −1 for x_0.
        x, x_start: float32 [K, n, C, H, W].

    Raises:
        InputError: K is outside 2..R+1, or the table runs from data to noise.
    """

    def __init__(self, table: StepTable, shape: SampleShape, num_states: int, num: int) -> None:
        rows = len(table)
        num_states, num = whole_number(num_states, "trajectory"), whole_number(num, "num", 1)
        if not 2 <= num_states <= rows + 1:
            raise InputError(f"trajectory is {shown(num_states)}, expected 2 to {rows + 1}, the states of {rows} steps")
        if table.ascending:
            raise InputError(f"a trajectory goes from noise to data, and the table of {table.sampler} the other way")
        self.num_samples = min(num, MAX_SAMPLES)
        self._states = np.rint(np.linspace(0, rows, num_states)).astype(np.int64)
        self._x_start_rows = np.minimum(self._states, rows - 1)
        self.timesteps = np.append(table.timesteps, -1)[self._states]
        self.x = np.zeros((num_states, self.num_samples, *shape.chw), dtype=np.float32)
        self.x_start = np.zeros_like(self.x)

    def keep(self, state: int, first: int, x: np.ndarray, x_start: np.ndarray | None) -> None:
        """Offer the state after `state` rows.

        Args:
            state: 0..R.
            first: place in the run of x[0].
            x: float32 [N, C, H, W].
            x_start: predicted in row state − 1; None in state 0.
        """
        last = min(first + len(x), self.num_samples)
        for place in np.flatnonzero(self._states == state):
            self.x[place, first:last] = x[: last - first]
        if x_start is not None:
            for place in np.flatnonzero(self._x_start_rows == state - 1):
                self.x_start[place, first:last] = x_start[: last - first]

    def next_stop(self, state: int) -> int:
        """The first state after this one that is wanted of x or of x_start; R where there is none."""
        wanted = np.union1d(self._states, self._x_start_rows + 1)
        later = wanted[wanted > state]
        return int(later[0]) if len(later) else int(self._states[-1])

    def save(self, folder: Path) -> list[Path]:
        """Write `TRAJECTORY_FILES`, all of them or none: strips of x and of x_start, the arrays, the animation."""
        with trajectory_files(folder).replaced() as temporary:
            strip_x, strip_x_start, arrays, animation = [temporary / name for name in TRAJECTORY_FILES]
            self.draw(self.x).save(strip_x)
            self.draw(self.x_start).save(strip_x_start)
            np.savez(arrays, timesteps=self.timesteps, x=self.x, x_start=self.x_start)
            self.save_animation(animation)
        return [folder / name for name in TRAJECTORY_FILES]

    def draw(self, states: np.ndarray) -> Image.Image:
        """A strip of `x` or `x_start`: a row for each sample, from noise at the left to the image at the right."""
        num_states, num_samples = states.shape[:2]
        tiles = states.swapaxes(0, 1).reshape(num_samples * num_states, *states.shape[2:])
        return draw_grid(quantize(tiles), columns=num_states)

    def save_animation(self, path: Path) -> None:
        """An animated WebP, lossless: a frame for each state, x above and the x_start predicted from it below.

        It shows as many of the samples as stand side by side in 16,383 pixels, the most that the format has.
        """
        frames = [self._frame(state, self.num_samples) for state in range(len(self.x))]
        if (width := frames[0].width) > _MAX_WEBP_PIXELS:
            fitting = max(1, self.num_samples * _MAX_WEBP_PIXELS // width)
            frames = [self._frame(state, fitting) for state in range(len(self.x))]
        shortest, longest = _FRAME_MS
        frame_ms = min(max(_ANIMATION_MS // len(frames), shortest), longest)
        durations_ms = [frame_ms] * (len(frames) - 1) + [_LAST_FRAME_MS]
        frames[0].save(
            path, "WEBP", save_all=True, append_images=frames[1:], duration=durations_ms, loop=0, lossless=True
        )

    def _frame(self, state: int, num_samples: int) -> Image.Image:
        tiles = np.concatenate([self.x[state, :num_samples], self.x_start[state, :num_samples]])
        return draw_grid(quantize(tiles), columns=num_samples)
