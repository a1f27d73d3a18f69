"""A float32 network in fp16 or bf16, by NVIDIA ModelOpt's AutoCast.

TensorRT 11 and TensorRT-RTX take the precision of every layer from the types in the ONNX graph, and TensorRT 10
can do the same. So precision is written into the graph, once and for all of them.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from commands.reasons import reason
from diffusion.errors import InputError
from export.graph_facts import is_standard, name_nodes
from export.network_io import T, X, set_io_type, tensor_types
from runtime.formats.precision import PRECISIONS

# fp16 ends at 65504, and normalizations square their inputs: what exceeds this on real states stays in float32.
# AutoCast's own default.
_MAX_FP16 = 512.0


@dataclass(frozen=True)
class MixedPrecision:
    """What AutoCast made.

    Attributes:
        model: with fp16 or bf16 nodes and weights; x and the prediction too, unless float32 was asked for.
        kept: names of the nodes that compute in float32, in the graph's order.
    """

    model: onnx.ModelProto
    kept: tuple[str, ...]


class AutoCastError(Exception):
    """AutoCast fails on a graph; the message is its own."""


def to_mixed_precision(
    model: onnx.ModelProto,
    precision: str,
    calibration: tuple[np.ndarray, np.ndarray],
    keep_float32: Collection[str] = (),
    debug: bool = False,
    float32_ends: bool = False,
    conditions: Mapping[str, np.ndarray] | None = None,
) -> MixedPrecision:
    """Convert a network.

    Args:
        model: float32, with the names of `export.network_io`; unchanged, except that its nodes are named.
        precision: `fp16` or `bf16`.
        calibration: x float32 [N, C, H, W] and t [N], on which values are watched that would overflow fp16.
        keep_float32: names of nodes that compute in float32.
        debug: let AutoCast report on standard error.
        float32_ends: leave x and the prediction in float32, with a cast behind the one and before the other.
        conditions: what else the network takes, for the calibration, by name.

    Raises:
        AutoCastError: a graph that AutoCast does not take.
        InputError: no room for the files that AutoCast reads.
    """
    name_nodes(model)
    x, t = calibration
    t_type = next(entry.type.tensor_type.elem_type for entry in model.graph.input if entry.name == T)
    t = t.astype(onnx.helper.tensor_dtype_to_np_dtype(t_type))
    lookups = [node.name for node in model.graph.node if is_standard(node, "Gather") and node.input[1] == T]
    lookups = [name for name in lookups if name not in keep_float32]
    with tempfile.TemporaryDirectory() as folder, _quiet(debug):
        from modelopt.onnx.autocast.convert import convert_to_mixed_precision

        path = Path(folder) / "network.onnx"
        arrays: dict[str, Any] = {X: x, T: t, **(conditions or {})}
        try:
            onnx.save(model, str(path))
            np.savez(Path(folder) / "calibration.npz", **arrays)
        except OSError as error:
            raise InputError(
                f"{folder}: the network cannot be written there for AutoCast ({error.strerror}); "
                "make room, or set TMPDIR to a folder with more"
            ) from error
        try:
            converted = convert_to_mixed_precision(
                str(path),
                low_precision_type=precision,
                keep_io_types=True,  # its own retyping of inputs would narrow t too
                nodes_to_exclude=_patterns(keep_float32),
                # Numbers of timesteps are large, and integers: tables that they index are as narrow as the rest.
                nodes_to_include=_patterns(lookups),
                # bf16 has float32's range.
                data_max=_MAX_FP16 if precision == "fp16" else np.inf,
                calibration_data=str(Path(folder) / "calibration.npz") if precision == "fp16" else None,
            )
        except Exception as error:  # AutoCast raises whatever its parts raise
            raise AutoCastError(reason(error)) from error
    del converted.graph.value_info[:]  # no longer all true: its open axis has several names
    if not float32_ends:
        set_io_type(converted, TensorProto.DataType.Value(PRECISIONS[precision].element_type.onnx))
    onnx.checker.check_model(converted)
    return MixedPrecision(converted, _in_float32(converted))


def _patterns(names: Collection[str]) -> list[str]:
    return [f"^{re.escape(name)}$" for name in names]


def _in_float32(model: onnx.ModelProto) -> tuple[str, ...]:
    types = tensor_types(model)
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type != "Cast" and any(types.get(name) == TensorProto.FLOAT for name in node.output)
    )


@contextlib.contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """AutoCast logs to standard output, which is for results; and imports warn about their own parts."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        importlib.import_module("modelopt.onnx.autocast.convert")
        for name in ("modelopt.onnx", "modelopt.onnx.autocast"):
            logger = logging.getLogger(name)
            for handler in list(logger.handlers):  # each holds the standard output of the moment it was made
                logger.removeHandler(handler)
            logger.setLevel(logging.DEBUG if debug else logging.CRITICAL)
            if debug:
                logger.addHandler(logging.StreamHandler(sys.stderr))
                logger.propagate = False
        yield
