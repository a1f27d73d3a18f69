"""Whether a table can be run with a network of low precision: how much its steps amplify a rounded prediction."""

from __future__ import annotations

import numpy as np

from diffusion.errors import InputError
from diffusion.step_table import StepTable

# Relative rounding error of a number in each precision: half a unit in its last place. For int8, a fixed point, it is
# half a level of 255 from −4 to 4: ε of unit variance exceeds ±4 once in 16,000.
ROUNDING = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 2.0**-6}

# The largest error of x', in units of data that span [−1, 1], that rounding a prediction of unit size may cause.
MAX_ROUNDING_ERROR = 0.05


def rounding_error(table: StepTable, precision: str) -> float:
    """The largest error of one step that rounding a prediction of unit size can cause, in units of data.

    Unclipped, this is a bound: G·2⁻¹¹ for fp16, G·2⁻⁸ for bf16 and G·2⁻⁶ for int8, with G of `StepTable.conditioning`.
    Clipped, x_start is never off by more than 2·clip, from one end of its range to the other, however large v is. A
    row counts at most clip·|b| for it, half of that: rounding reaches from end to end only at rows so noisy that the
    network knows nothing but the mean of its data, and from the middle of the range each end is clip away. Where that
    mean is m instead of 0, as in pixels that are white in every image, x_start can be off by clip + |m|.

    Raises:
        InputError: an unknown precision.
    """
    if precision not in ROUNDING:
        raise InputError(f"precision is {precision!r}, expected one of {', '.join(ROUNDING)}")
    q, b, v = (table.column(name) for name in ("q", "b", "v"))
    rounding = ROUNDING[precision]
    unclipped = np.abs(q + b * v) * rounding
    clipped = np.abs(q) * rounding + np.abs(b) * table.clip if np.isfinite(table.clip) else unclipped
    return float(np.minimum(unclipped, clipped).max())


def check_conditioning(table: StepTable, precision: str) -> None:
    """Refuse a table that would turn the rounding of a low-precision network into visible error.

    Args:
        table: the rows.
        precision: of the network's output, one of `ROUNDING`.

    Raises:
        InputError: an unknown precision, or a rounding error above `MAX_ROUNDING_ERROR`; names what would help.
    """
    error = rounding_error(table, precision)
    if error > MAX_ROUNDING_ERROR:
        clipping = "" if np.isfinite(table.clip) else "clip x_start, "
        raise InputError(
            f"table of {table.sampler} with {len(table)} steps: rounding the prediction to {precision} moves a step "
            f"by up to {error:.2g} (conditioning {table.conditioning:.3g}), "
            f"expected at most {MAX_ROUNDING_ERROR}; {clipping}"
            "leave out the noisiest timesteps with --lambda-min (-5.1 suits a cosine schedule), take more steps, "
            "or use an fp32 network"
        )
