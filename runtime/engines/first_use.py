"""An engine is verified where it runs: once for each processor, driver and runtime version.

An exporter that has no GPU can check the network that it hands to the builder, but not what the builder made of it; and
an engine for CPUs runs other instructions on another CPU. The reference predictions travel beside the engine, so that
is made up for at the first use. What was found is kept in the
user's cache folder, never in the sidecar, which belongs to all machines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from commands.errors import VerificationError
from commands.program import say
from diffusion.process import Process
from runtime.engines.cache_folder import keep, read_kept
from runtime.engines.interface import Engine
from runtime.engines.verification import EngineVerification, predict_with, verify_engine
from runtime.formats.golden import Golden
from runtime.formats.place import Place
from runtime.formats.sidecar import EngineDescription, Sidecar, golden_path, read_hashed

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
        return Golden.from_bytes(read_hashed(at, sidecar.golden_sha256, rebuild).tobytes(), at, rebuild)

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
