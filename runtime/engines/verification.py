"""Is an engine the network it was made from? Its predictions and a whole chain, against the float32 reference.

An engine is verified where it runs, once for each processor, driver and runtime version: an exporter without a GPU
cannot check what the builder made of the network, and an engine for CPUs runs other instructions on another CPU. The
reference predictions travel beside the engine. What was found is kept in the user's cache folder, never in the sidecar,
which belongs to all machines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from commands.errors import VerificationError
from commands.program import say
from diffusion.process import Process
from diffusion.reference_loop import initial_noise, reference_loop
from runtime.engines.cache_folder import keep, read_kept
from runtime.engines.interface import Engine
from runtime.formats.golden import Golden
from runtime.formats.place import Place
from runtime.formats.precision import PRECISIONS
from runtime.formats.sidecar import EngineDescription, Sidecar, golden_path, read_hashed
from runtime.formats.verification_record import VerificationRecord

# An error that stands out at some timestep is an error in the treatment of t, even within the tolerance.
MAX_ABOVE_MEDIAN = 2.0
# Below this part of the tolerance nothing stands out.
_NEGLIGIBLE = 0.1
# A freshly initialized network predicts 0; its error is measured against this root mean square instead.
_MIN_RMS = 1e-3

Predict = Callable[..., np.ndarray]
"""x [N, C, H, W], t [N] and one array [N, …] for each condition of the process → prediction [N, C or 2C, H, W].

All but conditions are float32.
"""


@dataclass(frozen=True)
class TimestepError:
    """The relative L2 error of the predictions at one timestep, and the largest that is allowed there."""

    timestep: int
    relative: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Within what is allowed; never for NaN."""
        return self.relative <= self.allowed


@dataclass(frozen=True)
class EngineVerification:
    """All that was compared.

    Attributes:
        errors: by timestep.
        chain_error: relative L2 error of x_0 after a chain with equal noise.
        chain_steps: of that chain.
        tolerance: for every error.
        reference, ran_on: what was compared with what.
    """

    errors: tuple[TimestepError, ...]
    chain_error: float
    chain_steps: int
    tolerance: float
    reference: str
    ran_on: str

    @property
    def passed(self) -> bool:
        """Whether the engine may be used."""
        return all(error.passed for error in self.errors) and self.chain_error <= self.tolerance

    @property
    def worst(self) -> float:
        """The largest error of a prediction; NaN counts as larger than any number."""
        return max((error.relative for error in self.errors), key=lambda e: math.inf if math.isnan(e) else e)

    @property
    def median(self) -> float:
        """The median over timesteps."""
        return float(np.median([error.relative for error in self.errors]))

    def record(self) -> VerificationRecord:
        """As it is kept: JSON has no NaN, so an error that is not finite is None."""
        return VerificationRecord(
            passed=self.passed,
            tolerance=self.tolerance,
            worst=finite_or_none(self.worst),
            median=finite_or_none(self.median),
            chain_steps=self.chain_steps,
            chain_error=finite_or_none(self.chain_error),
            reference=self.reference,
            ran_on=self.ran_on,
            timesteps=tuple(
                {"timestep": e.timestep, "relative_error": finite_or_none(e.relative), "allowed": e.allowed}
                for e in self.errors
            ),
        )

    def table(self) -> str:
        """One line per timestep and one for the chain, the failed ones marked."""
        lines = ["     t  relative error   allowed"]
        for error in self.errors:
            mark = "" if error.passed else "  too large"
            lines.append(f"{error.timestep:>6}  {error.relative:>14.3g}  {error.allowed:>8.2g}{mark}")
        mark = "" if self.chain_error <= self.tolerance else "  too large"
        lines.append(f"x_0 after {self.chain_steps} steps: {self.chain_error:.3g}, allowed {self.tolerance:g}{mark}")
        return "\n".join(lines)


def verify_engine(
    golden: Golden,
    process: Process,
    predict: Predict,
    precision: str,
    reference: str,
    ran_on: str,
    tolerance: float | None = None,
) -> EngineVerification:
    """Compare a network with its reference, in batches of 1, 2 and 5 of different samples and timesteps.

    At each timestep the error may be the tolerance, and at most twice the largest of these: the median over
    timesteps; what rounding x alone makes of the reference, since near t = 0 a trained network amplifies it; a tenth
    of the tolerance.

    Args:
        golden: the reference.
        process: what the network was trained to do.
        predict: the engine; it takes these batches, and one of all chains.
        precision: one of `runtime.formats.precision.PRECISIONS`.
        reference, ran_on: for the report.
        tolerance: another than the precision's.
    """
    tolerance = PRECISIONS[precision].tolerance if tolerance is None else tolerance
    found = np.empty_like(golden.prediction)
    for rows, columns in golden.batches():
        conditions = [each[rows, columns] for each in golden.conditions]
        t = golden.timesteps[rows].astype(np.float32)
        found[rows, columns] = golden.flat(predict(golden.x[rows, columns], t, *conditions))
    relative = [relative_error(each, expected) for each, expected in zip(found, golden.prediction, strict=True)]
    usual = max(float(np.median(relative)), _NEGLIGIBLE * tolerance)
    errors = tuple(
        TimestepError(int(timestep), error, min(tolerance, MAX_ABOVE_MEDIAN * max(usual, float(rounding))))
        for timestep, error, rounding in zip(golden.timesteps, relative, golden.input_rounding, strict=True)
    )
    x_0 = chain_end(golden, process, predict)
    return EngineVerification(
        errors, relative_error(x_0, golden.x_0), len(golden.chain_timesteps), tolerance, reference, ran_on
    )


def chain_end(golden: Golden, process: Process, predict: Predict) -> np.ndarray:
    """x_0 of the chains, [B, C, H, W], their arithmetic in float64 so that all that differs is the network."""

    def float32(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return predict(x.astype(np.float32), t.astype(np.float32), *golden.chain_conditions)

    x = initial_noise(golden.x_0.shape, golden.seed, 0)
    return reference_loop(golden.chain_table(process), float32, x, golden.seed)


def predict_with(engine: Engine, fitting_batch: Callable[[int], int] | None = None) -> Predict:
    """An engine as a function of any number of samples; bound anew for every call.

    Where the engine does not take a batch, it is given another: several, or one that is filled up with copies of the
    samples themselves, so that a network that mixes the samples of a batch sees no others.

    Args:
        engine: ready to run.
        fitting_batch: the batch that the engine takes for so many samples; None to go by its `batch_range`.
    """
    smallest, largest = engine.batch_range()

    def within_range(num: int) -> int:
        return max(smallest, num if largest is None else min(num, largest))

    fitting = fitting_batch or within_range

    def predict(x: np.ndarray, t: np.ndarray, *conditions: np.ndarray) -> np.ndarray:
        parts, first = [], 0
        while first < len(x):
            left = len(x) - first
            if engine.shares_timestep:  # those that follow at the same one
                left = int(np.argmin(np.append(t[first:] == t[first], False)))
            size = fitting(left)
            count = min(size, left)
            filled = first + np.arange(size) % count
            part_x = np.ascontiguousarray(x[filled], dtype=np.float32)
            prediction = np.empty((size, engine.process.prediction_channels, *x.shape[2:]), dtype=np.float32)
            part_t = np.ascontiguousarray(t[filled], dtype=np.float32)
            engine.bind(part_x, part_t, prediction, [np.ascontiguousarray(each[filled]) for each in conditions])()
            parts.append(prediction[:count])
            first += count
        return np.concatenate(parts)

    return predict


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """‖found − expected‖ / max(‖expected‖, 1e-3·√n), in float64; NaN or infinite where either is not finite."""
    difference = found.astype(np.float64) - expected.astype(np.float64)
    scale = max(float(np.linalg.norm(expected.astype(np.float64))), _MIN_RMS * math.sqrt(expected.size))
    return float(np.linalg.norm(difference)) / scale


def finite_or_none(number: float) -> float | None:
    """The number for JSON, which has no NaN and no infinity."""
    return number if math.isfinite(number) else None


_KIND = "verified"

AnyEngine = TypeVar("AnyEngine", bound=EngineDescription)


def ensure_verified(
    engine: Engine,
    path: Path,
    sidecar: Sidecar[AnyEngine],
    place: Place,
    verified_at: Place | None,
    fitting_batch: Callable[[int], int] | None = None,
) -> None:
    """Verify an engine here unless that was done already.

    Args:
        engine: ready to run.
        path: its file.
        sidecar: of that file.
        place: this machine.
        verified_at: where its exporter ran it; None if it did not.
        fitting_batch: as `predict_with`'s.

    Raises:
        VerificationError: it differs from its reference; the message holds the table.
        InputError: its reference predictions are missing or changed.
    """
    if verified_at == place:
        return
    rebuild = sidecar.engine.rebuild

    def reference() -> Golden:
        at = golden_path(path)
        content = read_hashed(path, at, sidecar.golden_sha256, rebuild).tobytes()
        golden = Golden.from_bytes(content, at, rebuild)
        golden.check_process(sidecar.process, at, rebuild)
        return golden

    # As it was trained: a variance or a clip that the user prefers would change the chain, not the network.
    verify_once(
        engine,
        path,
        {"sha256": sidecar.sha256, "golden_sha256": sidecar.golden_sha256},
        place,
        reference,
        sidecar.process,
        sidecar.verification.reference,
        f"build it again with `{rebuild}`, or in a higher precision",
        fitting_batch,
    )


def verify_once(
    engine: Engine,
    path: Path,
    identity: dict[str, Any],
    place: Place,
    make_reference: Callable[[], Golden],
    process: Process,
    reference: str,
    remedy: str,
    fitting_batch: Callable[[int], int] | None = None,
) -> None:
    """Verify an engine unless the user's cache folder says that the very same one passed here.

    Args:
        engine: ready to run.
        path: what it was opened from.
        identity: all that its results depend on beside the place; JSON.
        place: this machine.
        make_reference: reads or computes the reference predictions; called only where they are needed.
        process: that the network was trained for.
        reference: what made the predictions, for the report.
        remedy: what to do about an engine that differs.
        fitting_batch: as `predict_with`'s.

    Raises:
        VerificationError: it differs from its reference; the message holds the table.
    """
    facts = identity | {"place": place.to_json()}
    key = json.dumps(facts, sort_keys=True)
    if _passed(read_kept(_KIND, key), facts):
        return
    golden = make_reference()
    say(f"{path}: first use on {place}: verifying at {len(golden.timesteps)} timesteps and in a chain")
    result = verify_engine(
        golden, process, predict_with(engine, fitting_batch), engine.precision, reference, str(place)
    )
    if not result.passed:
        raise VerificationError(f"{path}: on {place} it differs from {result.reference}; {remedy}\n{result.table()}")
    report = {"engine": str(path.resolve()), **facts, "verification": result.record().to_json()}
    kept = keep(_KIND, key, json.dumps(report, indent=1).encode())
    say(
        _summary(path, result)
        + ("" if kept else "; the cache folder cannot be written, so the next run verifies again")
    )


def _passed(content: bytes | None, of: dict[str, Any]) -> bool:
    """Whether this is a record of a verification that passed, of this engine at this place."""
    try:
        record = json.loads(content or b"null")
        return record["verification"]["passed"] is True and all(record[name] == fact for name, fact in of.items())
    except (ValueError, KeyError, TypeError):
        return False


def _summary(path: Path, result: EngineVerification) -> str:
    return (
        f"{path}: verified: predictions at most {result.worst:.1e} from {result.reference}, "
        f"x_0 after {result.chain_steps} steps {result.chain_error:.1e} (tolerance {result.tolerance:g})"
    )
