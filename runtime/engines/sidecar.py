"""The `.json` beside an engine: what the engine is, whose process it runs, and what it was verified against.

An engine's file is opaque, and some deserializers crash on junk. So its bytes are hashed and compared with the sidecar
before a backend sees them, and nothing is opened that no exporter has verified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.errors import InputError
from diffusion.json_text import read_json
from diffusion.process import Process

SIDECAR_FORMAT = 1


@dataclass(frozen=True)
class Sidecar:
    """What stands in `unet.xml.json`.

    Attributes:
        sha256: of the engine's file.
        process: what the network was trained to do.
        engine: how it was built: flavor, builder, precision, inputs and outputs, and what the flavor adds.
        verification: what it was compared with, by how much it differed, and where that ran; `passed` is true.
        golden_sha256: of the reference predictions beside it, `unet.xml.golden.npz`.
    """

    sha256: str
    process: Process
    engine: Mapping[str, Any]
    verification: Mapping[str, Any]
    golden_sha256: str

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the file."""
        return {
            "format": SIDECAR_FORMAT,
            "sha256": self.sha256,
            "process": self.process.to_json(),
            "engine": dict(self.engine),
            "verification": dict(self.verification),
            "golden_sha256": self.golden_sha256,
        }


def sidecar_path(engine: Path) -> Path:
    """Where the sidecar of an engine's file is."""
    return engine.with_name(engine.name + ".json")


def golden_path(engine: Path) -> Path:
    """Where the reference predictions of an engine's file are."""
    return engine.with_name(engine.name + ".golden.npz")


def read_sidecar(engine: Path, rebuild: str) -> Sidecar:
    """Read and check the sidecar of an engine's file.

    Args:
        engine: the engine's file, which is not read.
        rebuild: the command that makes both, for the error.

    Raises:
        InputError: it is missing, not a sidecar of this version, or of an engine that failed its verification.
    """
    path = sidecar_path(engine)
    remedy = f"make it again with `{rebuild}`"
    fields = read_json(path, remedy, f"expected the description of {engine.name} beside it; copy both, or {remedy}")
    if not isinstance(fields, dict) or fields.get("format") != SIDECAR_FORMAT:
        found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
        raise InputError(
            f"{path}: format is {found!r}, this version reads {SIDECAR_FORMAT}; install the version that wrote it, "
            f"or make it again with `{rebuild}`"
        )
    for name, kind in (
        ("sha256", str),
        ("process", dict),
        ("engine", dict),
        ("verification", dict),
        ("golden_sha256", str),
    ):
        if not isinstance(fields.get(name), kind):
            raise InputError(
                f"{path}: {name} is {fields.get(name)!r}, expected {'an object' if kind is dict else 'a hash'}; "
                f"make it again with `{rebuild}`"
            )
    if fields["verification"].get("passed") is not True:
        raise InputError(
            f"{path}: verification.passed is {fields['verification'].get('passed')!r}, expected true: "
            f"{engine.name} has not passed verification; make it again with `{rebuild}`"
        )
    return Sidecar(
        fields["sha256"],
        Process.from_json(fields["process"], str(path)),
        fields["engine"],
        fields["verification"],
        fields["golden_sha256"],
    )


def read_hashed(path: Path, expected_sha256: object, rebuild: str) -> np.ndarray:
    """The bytes of a file whose hash a sidecar tells, uint8.

    Raises:
        InputError: it is missing, or its SHA-256 is another.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); copy the whole engine, or make it again with `{rebuild}`"
        ) from None
    found = hashlib.sha256(content.data).hexdigest()
    if found != expected_sha256:
        raise InputError(
            f"{path}: SHA-256 is {found}, but its sidecar was written for {expected_sha256}; "
            f"copy the whole engine again, or make it again with `{rebuild}`"
        )
    return content
