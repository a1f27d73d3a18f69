"""The `.json` beside an engine: what the engine is, whose process it runs, and what it was verified against.

An engine's file is opaque, and some deserializers crash on junk. So its bytes are hashed and compared with the sidecar
before a backend sees them, and nothing is opened that no exporter has verified.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np

from commands.file_sets import FileSet
from commands.system import check_memory
from commands.whole_files import write_whole_text
from diffusion.errors import InputError
from diffusion.number_checks import shown
from diffusion.process import Process
from diffusion.regular_files import open_regular, unreadable
from runtime.formats.digest import sealed_text
from runtime.formats.fields import Fields, read_fields
from runtime.formats.verification_record import VerificationRecord

SIDECAR_FORMAT = 2


class EngineDescription(Protocol):
    """How an engine was built: the object `engine` of its sidecar, one class for each kind of engine."""

    rebuild: ClassVar[str]
    """The command that makes such engines, for errors."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        ...

    @classmethod
    def from_json(cls, fields: Fields) -> Self:
        """The inverse of `to_json`. Raises InputError for a field that is missing or makes no sense."""
        ...


Description = TypeVar("Description", bound=EngineDescription)


@dataclass(frozen=True)
class Sidecar(Generic[Description]):
    """What stands in `unet.xml.json`.

    Attributes:
        sha256: of the engine's file.
        process: what the network was trained to do.
        engine: how it was built.
        verification: what it was compared with, by how much it differed, and where that ran; `passed` is true.
        golden_sha256: of the reference predictions beside it, `unet.xml.golden.npz`.
    """

    sha256: str
    process: Process
    engine: Description
    verification: VerificationRecord
    golden_sha256: str

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the file, without its digest."""
        return {
            "format": SIDECAR_FORMAT,
            "sha256": self.sha256,
            "process": self.process.to_json(),
            "engine": self.engine.to_json(),
            "verification": self.verification.to_json(),
            "golden_sha256": self.golden_sha256,
        }

    def write(self, engine: Path) -> None:
        """Write it beside an engine's file, whole. Raises InputError if it cannot be written."""
        write_whole_text(sidecar_path(engine), sealed_text(self.to_json()))


def sidecar_path(engine: Path) -> Path:
    """Where the sidecar of an engine's file is."""
    return engine.with_name(engine.name + ".json")


def golden_path(engine: Path) -> Path:
    """Where the reference predictions of an engine's file are."""
    return engine.with_name(engine.name + ".golden.npz")


def weights_path(engine: Path) -> Path:
    """Where the weights of an OpenVINO engine's file are."""
    return engine.with_suffix(".bin")


def engine_files(engine: Path) -> FileSet:
    """The files of an engine, which are published together; the first is its own."""
    weights = (weights_path(engine).name,) if engine.suffix == ".xml" else ()
    names = (engine.name, *weights, golden_path(engine).name, sidecar_path(engine).name)
    return FileSet(engine.parent, engine.name, names)


def read_sidecar(engine: Path, kind: type[Description]) -> Sidecar[Description]:
    """Read and check the sidecar of an engine's file.

    Args:
        engine: the engine's file, which is not read.
        kind: of engine.

    Raises:
        InputError: it is missing, was changed, is not a sidecar of this version or of such an engine, or of one that
            failed its verification.
    """
    path, remedy = engine_files(engine).current(sidecar_path(engine).name), f"make it again with `{kind.rebuild}`"
    missing = f"expected the description of {engine.name} beside it; copy both, or {remedy}"
    fields = read_fields(path, SIDECAR_FORMAT, remedy, missing)
    sha256, golden_sha256 = (fields.sha256(name) for name in ("sha256", "golden_sha256"))
    process, description = fields.get("process", dict), fields.get("engine", dict)
    verification = fields.get("verification", dict)
    if verification.get("passed") is not True:
        raise InputError(
            f"{path}: verification.passed is {shown(verification.get('passed'))}, expected true: "
            f"{engine.name} has not passed verification; {remedy}"
        )
    record = VerificationRecord.from_json(Fields(verification, path, remedy, "verification: "))
    sidecar = Sidecar(
        sha256,
        Process.from_json(process, str(path)),
        kind.from_json(Fields(description, path, remedy, "engine: ")),
        record,
        golden_sha256,
    )
    fields.check_names(sidecar.to_json())
    return sidecar


def read_hashed(engine: Path, path: Path, expected_sha256: object, rebuild: str) -> np.ndarray:
    """The bytes of a file whose hash a sidecar tells, uint8.

    Args:
        engine: the engine's file.
        path: of the file, which is one of `engine_files`.
        expected_sha256: its SHA-256 by the sidecar.
        rebuild: the command that makes such engines, for errors.

    Raises:
        InputError: it is missing, or its SHA-256 is another.
    """
    path = engine_files(engine).current(path.name)
    remedy = f"copy the whole engine, or make it again with `{rebuild}`"
    with open_regular(path, remedy) as file:
        size = os.fstat(file.fileno()).st_size
        check_memory(f"{path}: the file", size, "run it on a machine with more")
        content = np.empty(size, dtype=np.uint8)
        try:
            content = content[: file.readinto(content.data)]
        except OSError as error:
            raise unreadable(path, error, remedy) from None
    found = hashlib.sha256(content.data).hexdigest()
    if found != expected_sha256:
        raise InputError(
            f"{path}: SHA-256 is {found}, but its sidecar was written for {expected_sha256}; "
            f"copy the whole engine again, or make it again with `{rebuild}`"
        )
    return content
