"""The end of an export: verified and published whole, or refused and nothing written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from commands.errors import VerificationError
from commands.whole_files import check_room
from export.request import ExportRequest
from runtime.engines.verification import EngineVerification
from runtime.formats.sidecar import Description, Sidecar, engine_files, golden_path


class Verified(Protocol):
    """The verification of a file before it is published, whatever exporter made it."""

    @property
    def passed(self) -> bool:
        """Whether the file may be published."""

    @property
    def worst(self) -> float:
        """The largest relative L2 error of a prediction."""

    @property
    def tolerance(self) -> float:
        """For every error."""

    @property
    def ran_on(self) -> str:
        """What computed the predictions that were compared."""

    def table(self) -> str:
        """One line per comparison, the failed ones marked."""


@dataclass(frozen=True)
class Exported:
    """A file that was verified and published.

    Attributes:
        path: the file.
        source: the checkpoint or the ONNX file that it was made from.
        precision: in which it computes.
        size_bytes: of the network and its weights.
        verification: how far its predictions are from the float32 reference.
        report: everything that the command prints with `--json`, and its `summary`.
    """

    path: Path
    source: Path
    precision: str
    size_bytes: int
    verification: Verified
    report: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        """A field of the report."""
        return self.report[name]


def accuracy(measured: EngineVerification) -> str:
    """The errors of predictions and of a chain, for a summary."""
    return (
        f"predictions at most {measured.worst:.1e} from {measured.reference} (median {measured.median:.1e}, "
        f"{len(measured.errors)} timesteps), x_0 after {measured.chain_steps} steps {measured.chain_error:.1e} "
        f"(tolerance {measured.tolerance:g})"
    )


def check_passed(
    request: ExportRequest,
    reference: str,
    verification: Verified,
    other_precision: str,
    fold_instead: str = "Leave out --no-fold-time.",
) -> None:
    """Refuse a file that differs too much from its reference.

    Args:
        request: what was asked for.
        reference: what it was compared with.
        verification: what was found.
        other_precision: the way out for a precision that is too low.
        fold_instead: the way out for a time path that was not folded.

    Raises:
        VerificationError: by how much it differs, the way out, and the table.
    """
    if verification.passed:
        return
    if request.precision == "fp32":
        way_out = "This is a defect: please report it."
    else:
        way_out = other_precision if request.fold else fold_instead
    raise VerificationError(
        f"{request.out}: {request.precision} differs from {reference} by up to {verification.worst:.3g}, allowed at "
        f"each timestep is what the table says; nothing was published. {way_out}\n{verification.table()}"
    )


def publish_engine(engine: Path, sidecar: Sidecar[Description], golden: bytes, files: Mapping[Path, bytes]) -> None:
    """Write the files of an engine; whatever comes in between, all of them are the old ones, or the new ones.

    Args:
        engine: the file that the sidecar describes.
        sidecar: of that file.
        golden: the reference predictions that lie beside it.
        files: contents by path, of the engine and what else belongs to it.

    Raises:
        InputError: a file that cannot be written.
    """
    contents = {golden_path(engine): golden, **files}
    check_room(engine, sum(map(len, contents.values())))
    with engine_files(engine).replaced() as temporary:
        for path, content in contents.items():
            (temporary / path.name).write_bytes(content)
        sidecar.write(temporary / engine.name)
