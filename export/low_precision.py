"""A float32 network in fp16 or bf16: converted by NVIDIA ModelOpt's AutoCast, and its rounding emulated on a CPU.

TensorRT 11 and TensorRT-RTX take the precision of every layer from the types in the ONNX graph, and TensorRT 10
can do the same. So precision is written into the graph, once and for all of them.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from commands.errors import reason
from commands.program import say
from commands.whole_files import work_folder
from diffusion.errors import InputError
from export.graph_facts import all_names, free_name, is_standard, name_nodes, reads, rename_reads, subgraphs
from export.network_io import T, X, set_io_type, tensor_types
from export.time_path import find_time_path, label_path
from runtime.formats.golden import Golden
from runtime.formats.precision import PRECISIONS

# fp16 ends at 65504, and normalizations square their inputs: what exceeds this on real states stays in float32.
# AutoCast's own default.
_MAX_FP16 = 512.0


LOW_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# fmt: off
# They move numbers and make none, so what goes in rounded comes out so.
_MOVES = frozenset((
    "Reshape", "Transpose", "Gather", "Concat", "Split", "Slice", "Squeeze", "Unsqueeze", "Identity", "Expand",
    "Flatten",
))
# fmt: on


@dataclass(frozen=True)
class MixedPrecision:
    """What AutoCast made.

    Attributes:
        model: with fp16 or bf16 nodes and weights; x and the prediction too, unless float32 was asked for.
        kept: names of the nodes that compute in float32, in the graph's order.
    """

    model: onnx.ModelProto
    kept: tuple[str, ...]


def lower_precision(
    model: onnx.ModelProto,
    precision: str,
    golden: Golden,
    source: str,
    keep_float32: Collection[str] = (),
    float32_ends: bool = False,
    debug: bool = False,
    conditions: Sequence[str] = (),
) -> MixedPrecision:
    """A network in fp16 or bf16, calibrated on the reference's states.

    Args:
        model: float32, with the names of `export.network_io`.
        precision: `fp16` or `bf16`.
        golden: of the float32 reference, for this precision.
        source: what to call the network in an error.
        keep_float32: names of further nodes that compute in float32.
        float32_ends: leave x and the prediction in float32.
        debug: let AutoCast report on standard error.
        conditions: their names in the process, in the order of the golden's.

    Raises:
        InputError: a graph that AutoCast does not take, or no room for the files that it reads.
    """
    name_nodes(model)
    say(f"converting to {precision} with AutoCast")
    # What of the time path is not in tables computes in float32, and so do lookups that it reads; and so does what a
    # class label is added to, its embedding and its projections.
    path = [*find_time_path(model, X, T).path, *label_path(model, X, T)]
    left = [node for node in path if not is_standard(node, "Gather") or node.input[1] != T]
    read = {name for node in left for name in reads(node)}
    keep = [*keep_float32, *(node.name for node in path if node in left or not read.isdisjoint(node.output))]
    # AutoCast retypes what enters a loop or a branch, and not what is inside.
    control = [node for node in model.graph.node if any(True for _ in subgraphs(node))]
    keep += [node.name for node in control]
    # The first, a middle and the last state of a trajectory, one sample of each.
    rows = sorted({0, len(golden.timesteps) // 2, len(golden.timesteps) - 1})
    calibration = (golden.x[rows, 0], golden.timesteps[rows])
    fed = {entry.name for entry in model.graph.input}  # guidance comes later
    given = {name: each[rows, 0] for name, each in zip(conditions, golden.conditions, strict=True) if name in fed}
    return to_mixed_precision(model, precision, calibration, source, keep, float32_ends, debug, given)


def to_mixed_precision(
    model: onnx.ModelProto,
    precision: str,
    calibration: tuple[np.ndarray, np.ndarray],
    source: str = "network",
    keep_float32: Collection[str] = (),
    float32_ends: bool = False,
    debug: bool = False,
    conditions: Mapping[str, np.ndarray] | None = None,
) -> MixedPrecision:
    """Convert a network.

    Args:
        model: float32, with the names of `export.network_io`; unchanged, except that its nodes are named.
        precision: `fp16` or `bf16`.
        calibration: x float32 [N, C, H, W] and t [N], on which values are watched that would overflow fp16.
        source: what to call the network in an error.
        keep_float32: names of nodes that compute in float32.
        float32_ends: leave x and the prediction in float32, with a cast behind the one and before the other.
        debug: let AutoCast report on standard error.
        conditions: what else the network takes, for the calibration, by name.

    Raises:
        InputError: a graph that AutoCast does not take, or no room for the files that it reads.
    """
    name_nodes(model)
    x, t = calibration
    t_type = next(entry.type.tensor_type.elem_type for entry in model.graph.input if entry.name == T)
    t = t.astype(helper.tensor_dtype_to_np_dtype(t_type))
    lookups = [node.name for node in model.graph.node if is_standard(node, "Gather") and node.input[1] == T]
    lookups = [name for name in lookups if name not in keep_float32]
    with work_folder() as folder, _quiet(debug):
        from modelopt.onnx.autocast.convert import convert_to_mixed_precision

        path = folder / "network.onnx"
        arrays: dict[str, Any] = {X: x, T: t, **(conditions or {})}
        try:
            onnx.save(model, str(path))
            np.savez(folder / "calibration.npz", **arrays)
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
                calibration_data=str(folder / "calibration.npz") if precision == "fp16" else None,
            )
        except Exception as error:  # AutoCast raises whatever its parts raise
            raise InputError(
                f"{source}: ModelOpt's AutoCast cannot convert it to {precision} ({reason(error)}); "
                f"leave out --{precision}, or export it with --opset 18"
            ) from error
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


def emulate_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with float32 inputs and outputs, in float32 arithmetic that rounds as often as types say.

    ONNX Runtime's CPU provider has no bf16 convolutions, and runs fp16 graphs in float32 without rounding what passes
    from one node to the next. Here every tensor that the graph holds in low precision is rounded (Cast → low →
    float32), weights included. A GPU accumulates in float32 too and rounds at most where this rounds: it keeps what it
    fuses in registers.

    Args:
        model: with fp16 or bf16 tensors, none of them in a subgraph; unchanged.
    """
    types, taken = tensor_types(model), all_names(model.graph)
    emulated = onnx.ModelProto()
    emulated.CopyFrom(model)
    graph = emulated.graph
    del graph.value_info[:]
    for place, weights in enumerate(graph.initializer):
        if weights.data_type in LOW_TYPES:
            values = numpy_helper.to_array(weights).astype(np.float32)
            graph.initializer[place].CopyFrom(numpy_helper.from_array(values, weights.name))
    nodes: list[onnx.NodeProto] = []
    inputs = {entry.name: entry for entry in graph.input if entry.type.tensor_type.elem_type in LOW_TYPES}
    rounded_inputs = {}
    for name, entry in inputs.items():
        rounded_inputs[name] = free_name(f"{name}_rounded", taken)
        nodes += _round(name, rounded_inputs[name], entry.type.tensor_type.elem_type, taken)
        entry.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        rename_reads(node, rounded_inputs)
        low = {place: name for place, name in enumerate(node.output) if types.get(name) in LOW_TYPES}
        _compute_in_float32(node)
        nodes.append(node)
        if is_standard(node, *_MOVES):
            continue
        for place, name in low.items():
            node.output[place] = free_name(f"{name}_exact", taken)
            nodes += _round(node.output[place], name, types[name], taken)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    for entry in graph.output:
        if entry.type.tensor_type.elem_type in LOW_TYPES:
            entry.type.tensor_type.elem_type = TensorProto.FLOAT
    name_nodes(emulated)
    onnx.checker.check_model(emulated)
    return emulated


def _compute_in_float32(node: onnx.NodeProto) -> None:
    """Let what says a type itself say float32: the rounding behind it does the rest."""
    for entry in node.attribute:
        if is_standard(node, "Cast") and entry.name == "to" and entry.i in LOW_TYPES:
            entry.i = TensorProto.FLOAT
        elif entry.type == onnx.AttributeProto.TENSOR and entry.t.data_type in LOW_TYPES:
            entry.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry.t).astype(np.float32), entry.t.name))


def _round(source: str, target: str, element_type: int, taken: set[str]) -> list[onnx.NodeProto]:
    between = free_name(f"{target}_low", taken)
    return [
        helper.make_node("Cast", [source], [between], name=f"{target}/Round", to=element_type),
        helper.make_node("Cast", [between], [target], name=f"{target}/Widen", to=TensorProto.FLOAT),
    ]


def other_precision(precision: str) -> str:
    """The way out for a network that differs too much in one of the precisions that AutoCast makes."""
    return f"Give {'--bf16' if precision == 'fp16' else '--fp16'}, or neither for fp32."
