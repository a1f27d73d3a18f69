"""What an engine is compared with: states on real trajectories, the reference's predictions there, and a chain's end.

Kept beside the engine, so that it can be verified again where it runs, without PyTorch and without the checkpoint.
"""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.errors import InputError
from diffusion.number_checks import shown
from diffusion.process import Process
from diffusion.samplers import make_table
from diffusion.step_table import StepTable
from runtime.array_files import arrays_of

GOLDEN_FORMAT = 2
GATE_BATCHES = (5, 2, 1)
"""Sizes of the batches that every engine is verified with."""

_GOLDEN_SECTION = 0.618
_OF_CONDITIONS = ("conditions", "chain_conditions")
_ARRAYS = ("timesteps", "x", "prediction", "input_rounding", "chain_timesteps", "x_0")


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
        remedy = f"make it again with `{rebuild}`"
        arrays = arrays_of(content, str(path), remedy)

        def read(name: str) -> np.ndarray:
            if name not in arrays.names:
                raise arrays.refused(f"not the reference of an engine: it has no array {name}")
            return arrays.read(name)

        def whole(name: str, lowest: int) -> int:
            value = read(name)
            if value.shape or value.dtype.kind not in "iu" or value < lowest:
                raise arrays.refused(f"{name} is {shown(value)}, expected a whole number of at least {lowest}")
            return int(value)

        found = whole("format", 0)
        if found != GOLDEN_FORMAT:
            raise arrays.refused(f"format is {found}, this version reads {GOLDEN_FORMAT}")
        of_conditions = {}
        for name in _OF_CONDITIONS:
            places = range(sum(each.startswith(f"{name}.") for each in arrays.names))
            of_conditions[name] = tuple(read(f"{name}.{place}") for place in places)
        values: dict[str, Any] = {name: read(name) for name in _ARRAYS} | of_conditions
        golden = cls(**values, stride=whole("stride", 1), seed=whole("seed", 0))
        wrong = golden._first_fault()
        if wrong is not None:
            raise arrays.refused(f"not the reference of an engine: {wrong}")
        return golden

    def check_process(self, process: Process, path: Path, rebuild: str) -> None:
        """Raises InputError for the reference of another network's process."""
        last, shape = int(max(self.timesteps.max(), self.chain_timesteps.max())), self.x_0.shape[1:]
        wrong = None
        if last >= process.schedule.num_train_timesteps:
            wrong = f"timestep {last}, where the engine's process has {process.schedule.num_train_timesteps}"
        elif shape != process.sample.chw:
            wrong = f"samples of shape {list(shape)}, where the engine's process has {list(process.sample.chw)}"
        elif self.prediction.shape[2] != -(-math.prod((process.prediction_channels, *shape[1:])) // self.stride):
            wrong = f"predictions of {self.prediction.shape[2]} numbers, every {self.stride}-th of the network's"
        elif {len(self.conditions), len(self.chain_conditions)} != {len(process.conditions)}:
            wrong = f"{len(self.conditions)} conditions, where the engine's process has {len(process.conditions)}"
        if wrong is not None:
            raise InputError(
                f"{path}: not the reference of this engine, it has {wrong}; make it again with `{rebuild}`"
            )

    def _first_fault(self) -> str | None:
        """What in a file of somebody else's does not go together; None if nothing."""
        num_timesteps, num = self.x.shape[:2] if self.x.ndim == 5 else (0, 0)
        num_chains = len(self.x_0) if self.x_0.ndim == 4 else 0
        expected: dict[str, tuple[tuple[int, ...], np.ndarray, str]] = {
            "timesteps": ((num_timesteps,), self.timesteps, "i"),
            "x": ((num_timesteps, num, *self.x_0.shape[1:]), self.x, "f"),
            "prediction": ((num_timesteps, num), self.prediction, "f"),
            "input_rounding": ((num_timesteps,), self.input_rounding, "f"),
            "chain_timesteps": ((self.chain_timesteps.size,), self.chain_timesteps, "i"),
            "x_0": ((num_chains, *self.x.shape[2:]), self.x_0, "f"),
        }
        for place, each in enumerate(self.conditions):
            expected[f"conditions.{place}"] = ((num_timesteps, num), each, "if")
        for place, each in enumerate(self.chain_conditions):
            expected[f"chain_conditions.{place}"] = ((num_chains,), each, "if")
        for name, (shape, array, kinds) in expected.items():
            # Of the prediction and of conditions the first axes alone follow from the others.
            begin = array.shape[: len(shape)] if name not in ("x", "x_0") else array.shape
            if begin != shape or array.size == 0 or array.dtype.kind not in kinds:
                return f"{name} is {array.dtype} {list(array.shape)}"
            if not np.isfinite(array).all() or (kinds == "i" and array.min() < 0):
                return f"{name} holds numbers that are not finite or negative"
        for name, timesteps in (("timesteps", self.timesteps), ("chain_timesteps", self.chain_timesteps)):
            if (np.diff(timesteps) >= 0).any():
                return f"{name} do not descend"
        if self.prediction.ndim != 3:
            return f"prediction is {self.prediction.dtype} {list(self.prediction.shape)}"
        return None
