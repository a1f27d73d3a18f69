"""What in a network's graph depends on `t` and not on `x`, and where the rest of the graph reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from export.graph_facts import SHAPE_OPS, GraphFacts, is_standard, reads


@dataclass(frozen=True)
class TimePath:
    """How a graph is cut between what depends on `t` alone and the rest.

    Attributes:
        boundary: tensors of the time path that the rest of the graph reads, in the order they are computed.
        rest: nodes that the prediction still needs once the boundary is given, in the graph's order.
        path: nodes that compute the boundary, in the graph's order.
    """

    boundary: tuple[str, ...]
    rest: tuple[onnx.NodeProto, ...]
    path: tuple[onnx.NodeProto, ...]


def find_time_path(
    model: onnx.ModelProto,
    x_name: str,
    t_name: str,
    keep: frozenset[str] = frozenset(),
    facts: GraphFacts | None = None,
) -> TimePath:
    """Cut the graph as late in the time path as possible.

    Args:
        model: the network; what else it takes but t is no part of the time path, as x is not.
        x_name, t_name: its inputs.
        keep: tensors whose nodes stay in the rest, though they could be cut off.
        facts: of the model, where they are known already.
    """
    graph, facts = model.graph, facts or GraphFacts(model)
    weights = {entry.name for entry in graph.initializer}
    others = {x_name} | {entry.name for entry in graph.input if entry.name not in weights}
    of_x = _reached(graph, facts, others - {t_name}, frozenset())
    of_t = _reached(graph, facts, {t_name}, keep) - of_x
    producer = {output: node for node in graph.node for output in node.output if output}
    boundary = _Walk(producer)
    boundary.walk((entry.name for entry in graph.output), stop_at=of_t | {t_name}, except_shape_of=t_name)
    path = _Walk(producer)
    path.walk(boundary.stopped_at, stop_at=set(), except_shape_of=None)
    order = [t_name, *(output for node in graph.node for output in node.output)]
    return TimePath(
        tuple(name for name in order if name in boundary.stopped_at),
        tuple(node for node in graph.node if id(node) in boundary.seen),
        tuple(node for node in graph.node if id(node) in path.seen),
    )


def label_path(model: onnx.ModelProto, x_name: str, t_name: str) -> tuple[onnx.NodeProto, ...]:
    """Nodes of what depends on class labels, alone or with t, and on nothing of the size of an image."""
    graph, facts = model.graph, GraphFacts(model)
    weights = {entry.name for entry in graph.initializer}
    ranks = {entry.name: len(entry.type.tensor_type.shape.dim) for entry in graph.input if entry.name not in weights}
    labels = {name for name, rank in ranks.items() if rank == 1 and name not in (x_name, t_name)}
    of_images = _reached(graph, facts, {name for name, rank in ranks.items() if rank > 1}, frozenset())
    of_labels = _reached(graph, facts, labels, frozenset()) - of_images
    return tuple(node for node in graph.node if not of_labels.isdisjoint(node.output))


def time_path_model(model: onnx.ModelProto, path: TimePath, t_name: str) -> onnx.ModelProto:
    """The time path as a model of its own: the network's inputs, of which it reads only t and x's shape → boundary."""
    graph = onnx.GraphProto(name="time_path")
    graph.node.extend(path.path)
    read = {name for node in path.path for name in reads(node)}
    graph.initializer.extend(entry for entry in model.graph.initializer if entry.name in read)
    graph.sparse_initializer.extend(entry for entry in model.graph.sparse_initializer if entry.values.name in read)
    given = {entry.name for entry in model.graph.initializer}
    graph.input.extend(
        entry
        for entry in model.graph.input
        if entry.name in read | {t_name} and (entry.name in read or entry.name not in given)
    )
    # Outputs need a name only; what they are follows from the nodes.
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in path.boundary if name != t_name)
    cut = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    cut.opset_import.extend(model.opset_import)
    cut.functions.extend(model.functions)
    return cut


def _reached(graph: onnx.GraphProto, facts: GraphFacts, inputs: set[str], keep: frozenset[str]) -> set[str]:
    """Tensors whose values depend on the inputs' values; ONNX lists nodes in an order in which they can run."""
    found = set(inputs)
    for node in graph.node:
        # How large a tensor is may depend on values too, as of NonZero.
        reads_size_alone = is_standard(node, *SHAPE_OPS) and facts.has_certain_size(node.input[0])
        if not reads_size_alone and not found.isdisjoint(reads(node)):
            found.update(name for name in node.output if name)
    return found - keep - inputs


class _Walk:
    """Against the arrows, from tensors to the nodes that they need."""

    def __init__(self, producer: Mapping[str, onnx.NodeProto]) -> None:
        self._producer = producer
        self.seen: set[int] = set()
        self.stopped_at: set[str] = set()

    def walk(self, names: Iterable[str], stop_at: set[str], except_shape_of: str | None) -> None:
        left = list(names)
        while left:
            name = left.pop()
            if name in stop_at:
                self.stopped_at.add(name)
                continue
            node = self._producer.get(name)
            if node is None or id(node) in self.seen:
                continue
            self.seen.add(id(node))
            # The batch size read off t itself needs no table: t remains an input of that shape.
            skip = except_shape_of if is_standard(node, *SHAPE_OPS) else None
            left += [read for read in reads(node) if read != skip]
