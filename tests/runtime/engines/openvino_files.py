"""Engines for tests of the runtime alone: written as the exporter writes them, without torch or onnx."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from runtime.engines.openvino_cpu import place_here
from runtime.formats.digest import sealed_text
from runtime.formats.openvino_description import OpenVinoDescription
from runtime.formats.sidecar import Sidecar, sidecar_path
from runtime.formats.verification_record import VerificationRecord
from tests.gaussian import GaussianNetwork


def save_engine(path: Path, network: GaussianNetwork, precision: str = "fp32", folded: bool = True) -> Path:
    """The Gaussian network as `unet.xml`, `unet.bin` and a sidecar; return `path`."""
    channels, height, width = network.process.sample.chw
    x = ops.parameter([-1, channels, height, width], np.float32, name="x")
    t = ops.parameter([-1], np.int64 if folded else np.float32, name="t")
    for name, node in (("x", x), ("t", t)):
        node.output(0).set_names({name})
    place = t if folded else ops.convert(t, "i64")
    axis = ops.constant(np.int64(0))
    column = [-1, 1, 1, 1]
    slope, offset = (
        ops.gather(ops.constant(table.astype(np.float32).reshape(column)), place, axis)
        for table in (network.slope, network.offset)
    )
    prediction = ops.add(ops.multiply(x, slope), offset)
    prediction.output(0).set_names({"prediction"})
    ov.serialize(ov.Model([prediction], [x, t], "gaussian"), str(path))
    weights = path.with_suffix(".bin").read_bytes()
    sidecar = Sidecar(
        hashlib.sha256(path.read_bytes()).hexdigest(),
        network.process,
        OpenVinoDescription("the tests", precision, hashlib.sha256(weights).hexdigest(), place_here()),
        VerificationRecord(passed=True),
        "0" * 64,
    )
    write_sidecar(path, sidecar)
    return path


def write_sidecar(engine: Path, sidecar: Sidecar, **fields: Any) -> None:
    """Write the sidecar of an engine; `fields` replace what is in it."""
    sidecar_path(engine).write_text(sealed_text(replace(sidecar).to_json() | fields), encoding="utf-8")
