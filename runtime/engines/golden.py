"""What an engine is compared with: states on real trajectories, the reference's predictions there, and a chain's end.

Kept beside the engine, so that it can be verified again where it runs, without PyTorch and without the checkpoint.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from diffusion.errors import InputError
from diffusion.process import Process
from diffusion.samplers import make_table
from diffusion.step_table import StepTable

GOLDEN_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Golden:
    """The float32 reference of one network.

    Attributes:
        timesteps: int64 [K], descending, over the whole range.
        x: float32 [K, N, C, H, W], x_t of N reference chains at those timesteps.
        prediction: float32 [K, M], the reference's, [N, C or 2C, H, W] flattened, every `stride`-th element.
        stride: 1 for small networks.
        input_rounding: float64 [K], relative L2 error of the reference itself if x is rounded to the engine's
            precision; 0 for float32.
        seed: of the chains; their samples have indices 0..N−1.
        chain_timesteps: int64 [R], of a `ddpm` chain.
        x_0: float32 [N, C, H, W], its end.
    """

    timesteps: np.ndarray
    x: np.ndarray
    prediction: np.ndarray
    stride: int
    input_rounding: np.ndarray
    seed: int
    chain_timesteps: np.ndarray
    x_0: np.ndarray

    def chain_table(self, process: Process) -> StepTable:
        """The rows of the chain that ends in `x_0`."""
        return make_table(process, "ddpm", timesteps=self.chain_timesteps)

    def flat(self, prediction: np.ndarray) -> np.ndarray:
        """The elements of a prediction that `prediction` keeps, [M]."""
        return prediction.reshape(-1)[:: self.stride]

    def to_bytes(self) -> bytes:
        """The `.npz` file."""
        buffer = io.BytesIO()
        np.savez(buffer, format=GOLDEN_FORMAT, **{field.name: getattr(self, field.name) for field in fields(self)})
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
                values = {field.name: arrays[field.name] for field in fields(cls)}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path}: not the reference of an engine ({error}); make it again with `{rebuild}`"
            ) from error
        return cls(**values | {name: int(values[name]) for name in ("stride", "seed")})
