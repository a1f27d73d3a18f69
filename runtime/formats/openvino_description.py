"""What an OpenVINO engine's sidecar says of the engine: the object `engine` of `unet.xml.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from runtime.formats.fields import Fields
from runtime.formats.place import Place
from runtime.formats.precision import BF16, FP32
from runtime.formats.tensor_spec import NetworkTensors

FLAVOR = "openvino"
REBUILD = "python -m export.to_openvino"

PRECISION_HINTS = {each.name: each.element_type.openvino for each in (FP32, BF16)}
"""What OpenVINO is told by precision. Its own default is bf16 wherever the CPU has it, so it is never left to it."""


@dataclass(frozen=True)
class OpenVinoDescription:
    """An engine of two files, network and constants.

    Attributes:
        builder: OpenVINO and its version.
        precision: one of `PRECISION_HINTS`.
        weights_sha256: of the constants, `unet.bin`.
        verified_on: where its exporter ran it; None if it did not.
        tensors: its inputs and its output, for people: the file says it too.
        time_path: whether it was folded, and into what.
        rewritten: how many nodes got another form for OpenVINO, by form.
        onnx_sha256: of the network that it was made from.
    """

    builder: str
    precision: str
    weights_sha256: str
    verified_on: Place | None = None
    tensors: NetworkTensors | None = None
    time_path: Mapping[str, Any] = field(default_factory=dict)
    rewritten: Mapping[str, Any] = field(default_factory=dict)
    onnx_sha256: str | None = None

    rebuild: ClassVar[str] = REBUILD
    """The command that makes such an engine, for errors."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "flavor": FLAVOR,
            "builder": self.builder,
            "precision": self.precision,
            **({} if self.tensors is None else self.tensors.to_json()),
            "time_path": dict(self.time_path),
            "rewritten": dict(self.rewritten),
            "onnx_sha256": self.onnx_sha256,
            "weights_sha256": self.weights_sha256,
            "verified_on": None if self.verified_on is None else self.verified_on.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Fields) -> OpenVinoDescription:
        """The inverse of `to_json`.

        Raises:
            InputError: a field is missing or makes no sense.
        """
        fields.choice("flavor", (FLAVOR,))
        place = fields.values.get("verified_on")
        verified_on = Place.from_json(place)
        if place is not None and verified_on is None:
            raise fields.wrong("verified_on", place, "null, or the texts processor, driver and runtime")
        return cls(
            builder=fields.get("builder", str),
            precision=fields.choice("precision", tuple(PRECISION_HINTS)),
            weights_sha256=fields.sha256("weights_sha256"),
            verified_on=verified_on,
            tensors=NetworkTensors.from_json(fields) if "inputs" in fields.values else None,
            time_path=fields.optional("time_path", dict, {}),
            rewritten=fields.optional("rewritten", dict, {}),
            onnx_sha256=fields.sha256("onnx_sha256", optional=True),
        )
