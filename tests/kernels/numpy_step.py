"""One row of a sampler's table applied to a batch, in NumPy float32: the reference of the compiled step.

    x_start = clip(u·x + v·p)
    x'      = a·x + q·p + b·x_start [+ c1·h1 [+ c2·h2]] [+ (s·exp(k·w))·z]
    h1'     = d·x + f·x_start + g1·h1 [+ g2·h2]
    h2'     = x_start, or the old h1

p is the prediction's first C channels, w the next C (a learned variance), z the sample's noise. Terms are
summed from left to right, each operation rounded once, so `kernels/step.h` gives the same bits. The terms of
h1 and h2 are there if the table has one or two histories; the noise term is absent, not zero, where s = 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion.errors import InputError
from diffusion.float32_math import Float32, exp
from diffusion.normal import draw_number, normal
from diffusion.step_table import COLUMNS

Array = np.ndarray[Any, np.dtype[Any]]


def apply_row(
    coefficients: Float32,
    x: Float32,
    p: Float32,
    w: Float32 | None = None,
    z: Float32 | None = None,
    h1: Float32 | None = None,
    h2: Float32 | None = None,
    *,
    clip: float = np.inf,
    h2_is_x_start: bool = False,
) -> tuple[Float32, Float32, Float32 | None, Float32 | None]:
    """Apply one row to arrays of one shape (usually [C, H, W]); returns (x', x_start, h1', h2').

    `w` is given if the variance is learned, `h1` and `h2` if the table keeps them, `z` wherever s is not 0.

    Args:
        coefficients: float32 [13], in the order of `COLUMNS`.
        clip: bound of |x_start|; infinity for none. A NaN passes through.
    """
    u, v, a, q, b, c1, c2, d, f, g1, g2, s, k = np.asarray(coefficients, np.float32)
    bound = np.float32(clip)
    with np.errstate(all="ignore"):  # what is not finite is reported by a flag, not by a warning
        x_start = u * x + v * p
        x_start = np.where(x_start < -bound, -bound, np.where(x_start > bound, bound, x_start))
        x_next = (a * x + q * p) + b * x_start
        if h1 is not None:
            x_next = x_next + c1 * h1
        if h2 is not None:
            x_next = x_next + c2 * h2
        if s != 0:
            assert z is not None
            noise_std = s if w is None else s * exp(k * w)
            x_next = x_next + noise_std * z
        h1_next = h2_next = None
        if h1 is not None:
            h1_next = (d * x + f * x_start) + g1 * h1
            if h2 is not None:
                h1_next = h1_next + g2 * h2
                h2_next = x_start.copy() if h2_is_x_start else h1.copy()
    return x_next, x_start, h1_next, h2_next


class ReferenceStep:
    """The same constructor and `run` as the compiled `HostStep`, with the same bits in every buffer.

    Every sample has its own seed, sample index and row. `run` advances each by its row, in place:

    - x, h1, h2 [N, C, ...] take the new state; x_start and next_input, if given, this row's x_start and x'.
    - row[n] grows by one; while it names a row, t[n] becomes that row's timestep. A sample whose row is
      negative or past the table's end is idle: nothing of it is read or written.
    - flag[n], if 0, becomes 1 + the row whose prediction (all channels, before clipping) or x' is not finite.

    Args:
        coefficients: float32 [R, 13], in the order of `COLUMNS`.
        timesteps: int32 [R], training timesteps; they number the noise.
        prediction: [N, C or 2C, ...] float32, float16, or uint16 holding bfloat16.
        next_input: as x, in float32, float16, or uint16 holding bfloat16.
        t: [N] float32 or int64.
        row, flag: int32 [N]. seed, sample_index: uint64 [N].

    Raises:
        InputError: a learned variance without 2C channels, or a history that the table needs and lacks.
    """

    def __init__(
        self,
        coefficients: Float32,
        timesteps: Array,
        *,
        histories: int,
        learned: bool,
        h2_is_x_start: bool,
        clip: float,
        x: Float32,
        prediction: Array,
        t: Array,
        row: Array,
        seed: Array,
        sample_index: Array,
        flag: Array,
        h1: Float32 | None = None,
        h2: Float32 | None = None,
        x_start: Float32 | None = None,
        next_input: Array | None = None,
    ) -> None:
        num_channels = x.shape[1]
        if prediction.shape[1] not in ({2 * num_channels} if learned else {num_channels, 2 * num_channels}):
            expected = 2 * num_channels if learned else f"{num_channels} or {2 * num_channels}"
            raise InputError(f"prediction has {prediction.shape[1]} channels; expected {expected}")
        for name, history, needed in (("h1", h1, histories >= 1), ("h2", h2, histories == 2)):
            if needed and history is None:
                raise InputError(f"{name} is not given; the table keeps {histories} histories")
        self.coefficients, self.timesteps = coefficients, timesteps
        self.histories, self.learned, self.h2_is_x_start, self.clip = histories, learned, h2_is_x_start, clip
        self.x, self.prediction, self.t, self.row, self.flag = x, prediction, t, row, flag
        self.seed, self.sample_index = seed, sample_index
        self.h1, self.h2, self.x_start, self.next_input = h1, h2, x_start, next_input

    def run(self) -> None:
        """Advance every sample that is not idle by its row."""
        for n in range(len(self.row)):
            if 0 <= self.row[n] < len(self.timesteps):
                self._advance(n, int(self.row[n]))

    def _advance(self, n: int, row: int) -> None:
        num_channels = self.x.shape[1]
        prediction = float32_from(self.prediction[n])
        coefficients = self.coefficients[row]
        z = None
        if coefficients[COLUMNS.index("s")] != 0:
            draw = draw_number(int(self.timesteps[row]))
            z = normal(self.x.shape[1:], int(self.seed[n]), int(self.sample_index[n]), draw)
        x_next, x_start, h1_next, h2_next = apply_row(
            coefficients,
            self.x[n],
            prediction[:num_channels],
            prediction[num_channels:] if self.learned else None,
            z,
            self.h1[n] if self.histories >= 1 and self.h1 is not None else None,
            self.h2[n] if self.histories == 2 and self.h2 is not None else None,
            clip=self.clip,
            h2_is_x_start=self.h2_is_x_start,
        )
        finite = np.isfinite(prediction).all() and np.isfinite(x_next).all()
        if not finite and self.flag[n] == 0:
            self.flag[n] = row + 1
        self.x[n] = x_next
        if h1_next is not None and self.h1 is not None:
            self.h1[n] = h1_next
        if h2_next is not None and self.h2 is not None:
            self.h2[n] = h2_next
        if self.x_start is not None:
            self.x_start[n] = x_start
        if self.next_input is not None:
            self.next_input[n] = rounded_to(self.next_input.dtype, x_next)
        self.row[n] = row + 1
        if row + 1 < len(self.timesteps):
            self.t[n] = self.timesteps[row + 1]


def float32_from(values: Array) -> Float32:
    """Widen float32, float16 or (uint16 holding) bfloat16 to float32, exactly."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def rounded_to(dtype: Any, values: Float32) -> Array:
    """Round float32 to `dtype`, ties to even: float32, float16, or uint16 for bfloat16."""
    if np.dtype(dtype) != np.uint16:
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # The rounding above would carry a NaN's bits over into an infinity.
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)
