"""Classifier-free guidance as part of an exported network, so that chains, kernels and tables know nothing of it.

The network is called on 2N samples, each with its class and with the null class, and gives p_null + g·(p_y − p_null) on
the first C channels (Ho & Salimans 2022, eq. 6, g = 1 + w), in float32; the channels of a learned variance are the
class's. Where g = 1 the prediction is p_y itself and where g = 0 p_null: both bit for bit.

This comes last: what folds and rewrites a network sees it at N samples.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from diffusion.conditions import GUIDANCE
from diffusion.process import Process
from export.graph_facts import all_names, drop_unread, free_name, opset_of, rename_everywhere
from export.network_io import BATCH, PREDICTION

_PREFIX = f"{GUIDANCE}/"
_MIN_OPSET = 13  # since when Split takes its sizes as an input
_BOTH = "_both"


def with_guidance(model: onnx.ModelProto, process: Process) -> onnx.ModelProto:
    """A guided copy of a class-conditional network.

    Args:
        model: with the names of `export.network_io`, an open first axis, and the conditions of `process` but for the
            scale as further inputs; x and the prediction of one type.
        process: with the scale among its conditions.
    """
    label = process.label
    assert label is not None
    assert opset_of(model) >= _MIN_OPSET
    guided = onnx.ModelProto()
    guided.CopyFrom(model)
    graph = guided.graph
    taken = all_names(graph)
    inputs = [entry.name for entry in graph.input]
    both = {name: free_name(name + _BOTH, taken) for name in (*inputs, PREDICTION)}
    rename_everywhere(graph, both)
    for entry in (*graph.input, *graph.output):
        entry.name = next(name for name, inner in both.items() if inner == entry.name)
    taken |= set(both)
    builder = _Builder(graph, taken)
    null = builder.constant("null", np.array(label.null, dtype=np.int64))
    zero = builder.constant("zero", np.array(0, dtype=np.int64))
    fold = []
    for name in inputs:
        other = name
        if name == label.name:
            other = builder.node("Add", [builder.node("Mul", [name, zero]), null])
        fold.append(builder.make("Concat", [name, other], [both[name]], axis=0))
    before = [*builder.nodes]
    builder.nodes.clear()
    _combine(builder, process, both[PREDICTION], graph.output[0].type.tensor_type.elem_type)
    nodes = [*before, *graph.node, *builder.nodes]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    by_name = {entry.name: entry for entry in graph.input}
    by_name[GUIDANCE] = helper.make_tensor_value_info(GUIDANCE, TensorProto.FLOAT, [BATCH])
    names = [*inputs[:2], *(condition.name for condition in process.conditions)]
    ordered = [onnx.ValueInfoProto.FromString(by_name[name].SerializeToString()) for name in names]
    del graph.input[:]
    graph.input.extend(ordered)
    del graph.value_info[:]  # of N samples
    return guided


def _combine(builder: _Builder, process: Process, prediction: str, kind: int) -> None:
    sample, channels = process.sample, process.sample.channels
    all_channels = process.prediction_channels
    # As [2, N, …]: the halves lie one behind the other, whatever N is.
    apart = builder.constant("halves", np.array([2, -1, all_channels, sample.height, sample.width], dtype=np.int64))
    halves = builder.node("Reshape", [prediction, apart])
    first, second = (
        builder.constant(name, np.array(place, dtype=np.int64)) for place, name in enumerate(("y", "not_y"))
    )
    of_class, of_null = (builder.node("Gather", [halves, place], axis=0) for place in (first, second))
    variance: list[str] = []
    if all_channels > channels:
        sizes = builder.constant("channels", np.array([channels, all_channels - channels], dtype=np.int64))
        of_class, *variance = builder.nodes_outputs("Split", [of_class, sizes], 2, axis=1)
        of_null, _ = builder.nodes_outputs("Split", [of_null, sizes], 2, axis=1)
    p_y, p_null = of_class, of_null
    if kind != TensorProto.FLOAT:
        p_y, p_null = (builder.node("Cast", [each], to=TensorProto.FLOAT) for each in (p_y, p_null))
    column = builder.constant("column", np.array([-1, 1, 1, 1], dtype=np.int64))
    scale = builder.node("Reshape", [GUIDANCE, column])
    moved = builder.node("Add", [p_null, builder.node("Mul", [scale, builder.node("Sub", [p_y, p_null])])])
    one = builder.constant("one", np.array(1.0, dtype=np.float32))
    guided = builder.node("Where", [builder.node("Equal", [scale, one]), p_y, moved])
    if kind != TensorProto.FLOAT:
        guided = builder.node("Cast", [guided], to=kind)
    if variance:
        builder.make("Concat", [guided, *variance], [PREDICTION], axis=1)
    else:
        builder.nodes[-1].output[0] = PREDICTION


class _Builder:
    """Nodes and constants with names of their own."""

    def __init__(self, graph: onnx.GraphProto, taken: set[str]) -> None:
        self._graph, self._taken = graph, taken
        self.nodes: list[onnx.NodeProto] = []
        self._num_nodes = 0

    def constant(self, stem: str, values: np.ndarray) -> str:
        name = free_name(_PREFIX + stem, self._taken)
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def make(self, op_type: str, inputs: list[str], outputs: list[str], **attributes: int) -> str:
        name = f"{_PREFIX}{op_type}_{self._num_nodes}"
        self._num_nodes += 1
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=name, **attributes))
        return outputs[0]

    def nodes_outputs(self, op_type: str, inputs: list[str], num: int, **attributes: int) -> list[str]:
        outputs = [free_name(f"{_PREFIX}{op_type}", self._taken) for _ in range(num)]
        self.make(op_type, inputs, outputs, **attributes)
        return outputs

    def node(self, op_type: str, inputs: list[str], **attributes: int) -> str:
        return self.nodes_outputs(op_type, inputs, 1, **attributes)[0]


def without_guidance(model: onnx.ModelProto, process: Process) -> onnx.ModelProto | None:
    """The inverse of `with_guidance`; None for a network that it did not make.

    Guiding what is left must give the very graph again, so nothing is taken away that is not understood.
    """
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    graph = plain.graph
    ours = [node for node in graph.node if node.name.startswith(_PREFIX)]
    inner = {node.output[0]: node.input[0] for node in ours if node.op_type == "Concat" and len(node.input) == 2}
    inner = {name: outer for name, outer in inner.items() if name.startswith(outer + _BOTH)}
    made = [
        name for node in graph.node if node not in ours for name in node.output if name.startswith(PREDICTION + _BOTH)
    ]
    if len(made) != 1 or not inner:
        return None
    inner[made[0]] = PREDICTION
    for node in ours:
        graph.node.remove(node)
    for entry in list(graph.input):
        if entry.name == GUIDANCE:
            graph.input.remove(entry)
    for entry in (*graph.input, *graph.output):
        entry.name = next((name for name, outer in inner.items() if outer == entry.name), entry.name)
    rename_everywhere(graph, inner)
    drop_unread(graph, {entry.name for entry in graph.initializer if entry.name.startswith(_PREFIX)})
    try:
        again = with_guidance(plain, process)
    except (KeyError, AssertionError, StopIteration):
        return None
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    del expected.graph.value_info[:]
    return plain if _content(again) == _content(expected) else None


def _content(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)
