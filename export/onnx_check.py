"""An exported float32 network compared with PyTorch, for every timestep and batch size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from commands.errors import VerificationError
from commands.progress import progress_bar
from diffusion.process import Process
from runtime.engines.gate_conditions import gate_conditions
from runtime.engines.verification import Predict, finite_or_none, relative_error

TOLERANCE = 1e-5
"""Largest relative L2 error of a float32 export."""

_SEED = 0
_SEVERITY_ERROR = 3


@dataclass(frozen=True)
class SampleError:
    """How far one sample's prediction is from the reference.

    Attributes:
        timestep: the sample's.
        batch: how many samples were in the same call.
        relative: L2 norm of the difference over that of the reference.
    """

    timestep: int
    batch: int
    relative: float


@dataclass(frozen=True)
class Verification:
    """All that was compared, and against which bound.

    Attributes:
        errors: one per sample.
        tolerance: for each of them.
        ran_on: the backend that was compared.
    """

    errors: tuple[SampleError, ...]
    tolerance: float
    ran_on: str

    @property
    def worst(self) -> float:
        """The largest relative error; NaN counts as larger than any number."""
        return max((error.relative for error in self.errors), key=lambda e: math.inf if math.isnan(e) else e)

    @property
    def passed(self) -> bool:
        """Whether every error is within the tolerance."""
        return all(error.relative <= self.tolerance for error in self.errors)  # False for NaN

    def to_json(self) -> dict[str, Any]:
        """For a report: JSON has no NaN, so an error that is not finite is null."""
        return {
            "passed": self.passed,
            "tolerance": self.tolerance,
            "worst_relative_error": finite_or_none(self.worst),
            "ran_on": self.ran_on,
            "samples": [
                {"timestep": e.timestep, "batch": e.batch, "relative_error": finite_or_none(e.relative)}
                for e in self.errors
            ],
        }

    def table(self) -> str:
        """One line per sample, by timestep, the failed ones marked."""
        lines = [f"{'t':>6}  {'batch':>5}  relative error (at most {self.tolerance:g})"]
        for error in sorted(self.errors, key=lambda e: (e.timestep, e.batch)):
            mark = "" if error.relative <= self.tolerance else "  too large"
            lines.append(f"{error.timestep:>6}  {error.batch:>5}  {error.relative:.3g}{mark}")
        return "\n".join(lines)


def verify_onnx(path: Path, process: Process, reference: Predict, tolerance: float = TOLERANCE) -> Verification:
    """Run the file with ONNX Runtime on the CPU and compare it with the reference.

    Each sample of a batch is compared for itself: ‖Δ‖ ≤ tolerance · max(‖ref‖, 1e-3·√n), n its elements.

    Args:
        path: the file, as it will be published.
        process: what the network was trained to do.
        reference: the network in PyTorch, float32.
        tolerance: relative L2 error.

    Raises:
        VerificationError: with a table by timestep, if any sample is further away.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _SEVERITY_ERROR
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    names = ["x", "t", *(condition.name for condition in process.conditions)]

    def exported(*arrays: np.ndarray) -> np.ndarray:
        prediction: np.ndarray = session.run(["prediction"], dict(zip(names, arrays, strict=True)))[0]
        return prediction

    errors = compare(process, reference, exported)
    result = Verification(tuple(errors), tolerance, f"ONNX Runtime {ort.__version__} (CPU)")
    if not result.passed:
        raise VerificationError(
            f"the exported network differs from PyTorch by up to {result.worst:.3g}, more than {tolerance:g}; "
            f"nothing was published\n{result.table()}"
        )
    return result


def compare(process: Process, reference: Predict, exported: Predict) -> list[SampleError]:
    """The error of every sample over batches of 1, 2 and 5 and timesteps from the first to the last."""
    rng = np.random.default_rng(_SEED)
    batches = list(batches_of_timesteps(process.schedule.num_train_timesteps))
    errors: list[SampleError] = []
    with progress_bar(len(batches), "checking against PyTorch", unit="batch") as bar:
        for timesteps in batches:
            # At unit variance x is what the network sees: x_t has it throughout the forward process.
            x = rng.standard_normal((len(timesteps), *process.sample.chw), dtype=np.float32)
            t = np.array(timesteps, dtype=np.float32)
            conditions = gate_conditions(process.conditions, len(t), len(errors))
            expected, found = reference(x, t, *conditions), exported(x, t, *conditions)
            if found.shape != expected.shape:
                raise VerificationError(
                    f"the exported network's prediction has shape {found.shape}, PyTorch's {expected.shape}; "
                    "nothing was published"
                )
            errors += [
                SampleError(timestep, len(timesteps), relative_error(found[i], expected[i]))
                for i, timestep in enumerate(timesteps)
            ]
            bar.update()
    return errors


def batches_of_timesteps(num_train_timesteps: int) -> Iterator[tuple[int, ...]]:
    """Batches of 1, 2 and 5 timesteps, the latter two mixed, with 0, 1, T//2 and T−1 in each size."""
    last, middle = num_train_timesteps - 1, num_train_timesteps // 2
    second = min(1, last)
    for timestep in (0, second, middle, last):
        yield (timestep,)
    yield 0, last
    yield middle, second
    spread = np.linspace(0, last, 7).round().astype(int).tolist()[1:-1]
    yield last, second, 0, middle, spread[0]
    yield tuple(spread)
