"""What an engine is compared with: states on real trajectories, the reference's predictions there, and a chain's end.

Kept beside the engine, so that it can be verified again where it runs, without PyTorch and without the checkpoint.
"""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from diffusion.errors import InputError
from diffusion.process import Process
from diffusion.samplers import make_table
from diffusion.step_table import StepTable
from runtime.arrays import UNREADABLE

GOLDEN_FORMAT = 2
GATE_BATCHES = (5, 2, 1)
"""Sizes of the batches that every engine is verified with."""

_GOLDEN_SECTION = 0.618
_OF_CONDITIONS = ("conditions", "chain_conditions")


@dataclass(frozen=True, eq=False)
class Golden:
    """The float32 reference of one network.

    Attributes:
        timesteps: int64 [K], descending, over the whole range.
        x: float32 [K, N, C, H, W], N different states at each of those timesteps, x_t of reference chains.
        prediction: float32 [K, N, M], the reference's, each computed alone: [C or 2C, H, W] flattened, every
            `stride`-th element.
        stride: 1 for small networks.
        input_rounding: float64 [K], relative L2 error of the reference itself if x is rounded to the engine's
            precision; 0 for float32.
        seed: of the chains; their samples have indices 0..B−1.
        chain_timesteps: int64 [R], of a `ddpm` chain.
        x_0: float32 [B, C, H, W], its end, each computed alone.
        conditions: of each state, [K, N, …]: one array for each condition of the process, in its order.
        chain_conditions: of each chain, [B, …], likewise.
    """

    timesteps: np.ndarray
    x: np.ndarray
    prediction: np.ndarray
    stride: int
    input_rounding: np.ndarray
    seed: int
    chain_timesteps: np.ndarray
    x_0: np.ndarray
    conditions: tuple[np.ndarray, ...] = ()
    chain_conditions: tuple[np.ndarray, ...] = ()

    def chain_table(self, process: Process) -> StepTable:
        """The rows of the chain that ends in `x_0`."""
        return make_table(process, "ddpm", timesteps=self.chain_timesteps)

    def flat(self, prediction: np.ndarray) -> np.ndarray:
        """The elements that `prediction` keeps of predictions [B, C or 2C, H, W]: [B, M]."""
        return prediction.reshape(len(prediction), -1)[:, :: self.stride]

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """All states once, in batches of 5, 2 and 1 by turns whose samples and timesteps differ.

        A graph that mixes the samples of a batch is right at a batch of 1, and may be right for equal samples.

        Returns:
            int64 [B], int64 [B] each: the places along the first two axes of `x`.
        """
        num_timesteps, num = self.x.shape[:2]
        # Neighbours in this order are far apart in time.
        stride = round(num_timesteps * _GOLDEN_SECTION)
        while math.gcd(stride, num_timesteps) != 1:
            stride += 1
        along = np.arange(num_timesteps) * stride % num_timesteps
        rows, columns = np.tile(along, num), np.repeat(np.arange(num), num_timesteps)
        batches, first = [], 0
        for size in itertools.cycle(GATE_BATCHES):
            batches.append((rows[first : first + size], columns[first : first + size]))
            first += size
            if first >= len(rows):
                return batches
        raise AssertionError("unreachable")

    def to_bytes(self) -> bytes:
        """The `.npz` file."""
        buffer = io.BytesIO()
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in _OF_CONDITIONS:
            arrays |= {f"{name}.{place}": array for place, array in enumerate(arrays.pop(name))}
        np.savez(buffer, format=GOLDEN_FORMAT, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, path: Path, rebuild: str) -> Golden:
        """The inverse of `to_bytes`.

        Args:
            content: of the file, its hash compared with the sidecar's already.
            path, rebuild: the file and the command that makes it, for an error.

        Raises:
            InputError: not such a file, or of another version.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                found = int(arrays["format"])
                if found != GOLDEN_FORMAT:
                    raise InputError(
                        f"{path}: format is {found}, this version reads {GOLDEN_FORMAT}; make it again with `{rebuild}`"
                    )
                values = {field.name: arrays[field.name] for field in fields(cls) if field.name not in _OF_CONDITIONS}
                for name in _OF_CONDITIONS:
                    places = range(sum(each.startswith(f"{name}.") for each in arrays.files))
                    values[name] = tuple(arrays[f"{name}.{place}"] for place in places)
        except UNREADABLE as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path}: not the reference of an engine ({error}); make it again with `{rebuild}`"
            ) from error
        return cls(**values | {name: int(values[name]) for name in ("stride", "seed")})
