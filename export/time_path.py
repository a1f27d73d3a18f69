"""What in a network's graph depends on `t` and not on `x`, where the rest reads it, and which of it is sure to be rows.

The time path is evaluated for t = 0..T−1 as one batch and its rows are looked up afterwards. That is the network only
if row i depends on t[i] and on nothing else: no neighbour, no batch size, no chance. `kinds_of` proves that operator by
operator; what it cannot prove stays in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from enum import Enum, auto

import onnx

from export.graph_facts import BATCH, SHAPE_OPS, GraphFacts, Shape, attribute, is_standard, reads, subgraphs


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
    rest, boundary = _needed(producer, (entry.name for entry in graph.output), of_t | {t_name}, except_shape_of=t_name)
    path, _ = _needed(producer, boundary, frozenset())
    order = [t_name, *(output for node in graph.node for output in node.output)]
    return TimePath(
        tuple(name for name in order if name in boundary),
        tuple(node for node in graph.node if id(node) in rest),
        tuple(node for node in graph.node if id(node) in path),
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


def _needed(
    producer: Mapping[str, onnx.NodeProto], names: Iterable[str], stop_at: Set[str], except_shape_of: str | None = None
) -> tuple[set[int], set[str]]:
    """Against the arrows: the nodes, by id, that tensors need, and the tensors at which the walk stopped."""
    seen, stopped, left = set(), set(), list(names)
    while left:
        name = left.pop()
        if name in stop_at:
            stopped.add(name)
            continue
        node = producer.get(name)
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        # The batch size read off t itself needs no table: t remains an input of that shape.
        skip = except_shape_of if is_standard(node, *SHAPE_OPS) else None
        left += [read for read in reads(node) if read != skip]
    return seen, stopped


class Kind(Enum):
    """What the values of a tensor are made from."""

    FIXED = auto()  # from constants
    BATCH_SIZE = auto()  # from how many samples there are
    ROWS = auto()  # [N, …]: row i from constants and t[i]
    OTHER = auto()  # anything else, or unknown


# fmt: off
_ELEMENTWISE = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp",
    "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu",
    "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub",
    "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
))
# They keep the order of the elements, so that equal first axes are equal rows.
_RESHAPES = frozenset(("Reshape", "Unsqueeze", "Squeeze", "Flatten"))
_REDUCTIONS = frozenset((
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
))
_ALONG_AN_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "LpNormalization": -1, "ArgMax": 0, "ArgMin": 0}
# Their first axis is the batch by definition.
_PER_SAMPLE = frozenset((
    "Conv", "ConvTranspose", "InstanceNormalization", "GroupNormalization", "GlobalAveragePool", "GlobalMaxPool",
    "AveragePool",
))
_BY_CHANCE = frozenset((
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli",
))
# fmt: on
_MIN_OPSET = 13  # before, other rules for axes


def kinds_of(graph: onnx.GraphProto, facts: GraphFacts, x_name: str, t_name: str) -> dict[str, Kind]:
    """The kind of every tensor of a graph, by name."""
    kinds = dict.fromkeys(facts.constants, Kind.FIXED)
    kinds.update({entry.name: Kind.OTHER for entry in graph.input})
    kinds[t_name] = Kind.ROWS
    prover = _Prover(facts, kinds)
    for node in graph.node:
        for name in filter(None, node.output):
            kinds[name] = prover.kind_of(node, name)
    return kinds


def _draws(node: onnx.NodeProto) -> bool:
    return node.op_type in _BY_CHANCE or (node.op_type == "Dropout" and len(node.input) > 2)


class _Prover:
    def __init__(self, facts: GraphFacts, kinds: dict[str, Kind]) -> None:
        self._facts, self._kinds = facts, kinds

    def _has_rows(self, name: str) -> bool:
        return (
            self._facts.shapes.get(name, ())[:1] == (BATCH,)
            and BATCH not in self._facts.shapes[name][1:]
            and self._facts.has_certain_size(name)
        )

    def kind_of(self, node: onnx.NodeProto, output: str) -> Kind:
        """Of one of a node's outputs."""
        if any(True for _ in subgraphs(node)) or _draws(node) or not is_standard(node, node.op_type):
            return Kind.OTHER
        if node.op_type in SHAPE_OPS:
            return Kind.BATCH_SIZE if self._facts.has_certain_size(node.input[0]) else Kind.OTHER
        kinds = {self._kinds.get(name, Kind.OTHER) for name in node.input if name}
        if Kind.OTHER in kinds:
            return Kind.OTHER
        if kinds <= {Kind.FIXED}:
            return Kind.FIXED
        rule = self._rule(node.op_type)
        proven = rule is not None and self._facts.opset >= _MIN_OPSET and self._has_rows(output) and rule(node)
        if proven:
            return Kind.ROWS
        return Kind.OTHER if Kind.ROWS in kinds else Kind.BATCH_SIZE

    def _rule(self, op_type: str) -> Callable[[onnx.NodeProto], bool] | None:
        if op_type in _ELEMENTWISE:
            return self._elementwise
        if op_type in _RESHAPES:
            return self._reshape
        if op_type in _REDUCTIONS:
            return self._reduction
        if op_type in _ALONG_AN_AXIS:
            return self._along_an_axis
        if op_type in _PER_SAMPLE:
            return self._first_alone
        return {
            "Concat": self._concat,
            "Dropout": self._first_alone,  # which does nothing outside training
            "Expand": self._expand,
            "ConstantOfShape": self._constant_of_shape,
            "Gather": self._gather,
            "Gemm": self._gemm,
            "LayerNormalization": self._layer_normalization,
            "MatMul": self._matrix_product,
            "OneHot": self._one_hot,
            "Slice": self._slice,
            "Split": self._split,
            "Transpose": self._transpose,
            "CumSum": self._cumulative_sum,
        }.get(op_type)

    def _is(self, name: str, kind: Kind) -> bool:
        return self._kinds.get(name) is kind

    def _shape(self, name: str) -> Shape | None:
        return self._facts.shapes.get(name)

    def _rank(self, name: str) -> int:
        return len(self._facts.shapes.get(name, ()))

    def _others_fixed(self, node: onnx.NodeProto, first: int = 1) -> bool:
        return all(self._is(name, Kind.FIXED) for name in node.input[first:] if name)

    def _same_in_all_rows(self, name: str, rank: int) -> bool:
        """Whether a constant is broadcast over the first of so many axes."""
        shape = self._shape(name)
        return self._is(name, Kind.FIXED) and shape is not None and (len(shape) < rank or shape[:1] in ((1,), ()))

    def _elementwise(self, node: onnx.NodeProto) -> bool:
        rank = self._rank(node.output[0])
        return all(
            self._rank(name) == rank if self._is(name, Kind.ROWS) else self._same_in_all_rows(name, rank)
            for name in node.input
            if name
        )

    def _reshape(self, node: onnx.NodeProto) -> bool:
        # The target may be computed from the batch size: what it comes to is in the shape of the output.
        return self._is(node.input[0], Kind.ROWS)

    def _expand(self, node: onnx.NodeProto) -> bool:
        x, rank = node.input[0], self._rank(node.output[0])
        return self._rank(x) == rank if self._is(x, Kind.ROWS) else self._same_in_all_rows(x, rank)

    def _constant_of_shape(self, node: onnx.NodeProto) -> bool:
        return True

    def _reduction(self, node: onnx.NodeProto) -> bool:
        if len(node.input) > 1 and node.input[1]:
            numbers = self._facts.numbers(node.input[1])
            axes: object = None if numbers is None else numbers.reshape(-1).tolist()
        else:
            axes = attribute(node, "axes", [])
        return self._first_alone(node) and isinstance(axes, list) and bool(axes) and not self._touches_rows(node, axes)

    def _along_an_axis(self, node: onnx.NodeProto) -> bool:
        axis = attribute(node, "axis", _ALONG_AN_AXIS[node.op_type])
        return self._first_alone(node) and not self._touches_rows(node, [axis])

    def _cumulative_sum(self, node: onnx.NodeProto) -> bool:
        axis = self._facts.numbers(node.input[1])
        return axis is not None and self._first_alone(node) and not self._touches_rows(node, axis.reshape(-1).tolist())

    def _layer_normalization(self, node: onnx.NodeProto) -> bool:
        # Gains of the rank of x could differ by row.
        plain = all(self._same_in_all_rows(name, self._rank(node.input[0])) for name in node.input[1:] if name)
        return plain and self._first_alone(node) and not self._touches_rows(node, [attribute(node, "axis", -1)])

    def _first_alone(self, node: onnx.NodeProto) -> bool:
        return self._is(node.input[0], Kind.ROWS) and self._others_fixed(node)

    def _touches_rows(self, node: onnx.NodeProto, axes: list[object]) -> bool:
        """Whether one of the axes is the first, counted from either end."""
        rank = self._rank(node.input[0])
        return any(not isinstance(axis, int) or axis % rank == 0 for axis in axes)

    def _concat(self, node: onnx.NodeProto) -> bool:
        return all(self._is(name, Kind.ROWS) for name in node.input) and not self._touches_rows(
            node, [attribute(node, "axis", 0)]
        )

    def _gather(self, node: onnx.NodeProto) -> bool:
        data, places = node.input[:2]
        axis = attribute(node, "axis", 0)
        if self._is(places, Kind.ROWS):  # an embedding
            return self._is(data, Kind.FIXED) and axis == 0
        return self._first_alone(node) and not self._touches_rows(node, [axis])

    def _one_hot(self, node: onnx.NodeProto) -> bool:
        return self._first_alone(node) and attribute(node, "axis", -1) == -1

    def _gemm(self, node: onnx.NodeProto) -> bool:
        added = all(self._is(name, Kind.ROWS) or self._same_in_all_rows(name, 2) for name in node.input[2:] if name)
        two_axes = all(self._rank(name) == 2 for name in node.input[2:] if self._is(name, Kind.ROWS))
        product = self._is(node.input[0], Kind.ROWS) and self._is(node.input[1], Kind.FIXED)
        return product and added and two_axes and attribute(node, "transA", 0) == 0

    def _matrix_product(self, node: onnx.NodeProto) -> bool:
        one, other = node.input[:2]
        ranks = self._rank(one), self._rank(other)
        if self._is(one, Kind.ROWS) and self._is(other, Kind.ROWS):  # a product for each sample
            return ranks[0] == ranks[1] > 2
        if self._is(one, Kind.ROWS):
            return ranks[0] >= 2 and ranks[1] == 2
        return ranks[1] > 2 and ranks[0] == 2

    def _slice(self, node: onnx.NodeProto) -> bool:
        axes = self._facts.numbers(node.input[3]) if len(node.input) > 3 and node.input[3] else None
        return axes is not None and self._first_alone(node) and not self._touches_rows(node, axes.tolist())

    def _split(self, node: onnx.NodeProto) -> bool:
        return self._first_alone(node) and not self._touches_rows(node, [attribute(node, "axis", 0)])

    def _transpose(self, node: onnx.NodeProto) -> bool:
        order = attribute(node, "perm", [])
        return isinstance(order, list) and order[:1] == [0]
