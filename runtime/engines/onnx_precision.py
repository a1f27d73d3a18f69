"""In which precision an ONNX file computes: by its metadata or else its graph, before any library opens the file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from diffusion.errors import InputError
from runtime.engines.protobuf_wire import WireFile, number, span
from runtime.formats.precision import BF16, FP16, INT8, PRECISIONS

PRECISION_KEY = "ddpm-rt-precision"
"""The metadata property of an ONNX file whose arithmetic is not float32: `fp16` or `bf16`."""

LOW_PRECISIONS = (FP16.name, BF16.name)
"""What the property may say."""

QUANTIZED = INT8.name
"""The precision of what computes, or stores weights, in eight bits or fewer, whole numbers or floats."""

_BY_COARSENESS = tuple(PRECISIONS)  # the coarser one last

# Fields of onnx.proto (IR version 13), message by message.
_MODEL_GRAPH, _MODEL_PROPERTY, _MODEL_FUNCTION = span(7), span(14), span(25)
_PROPERTY_KEY, _PROPERTY_VALUE = span(1), span(2)
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = span(1), span(5), span(11), span(12), span(15)
_FUNCTION_NAME, _FUNCTION_OUTPUT, _FUNCTION_NODE = span(1), span(5), span(7)
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = span(1), span(2), span(4), span(5)
_ATTRIBUTE_NAME, _ATTRIBUTE_NUMBER = span(1), number(3)
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (
    (span(5), span(10)),
    (span(6), span(11)),
    (span(22), span(23)),
)
_SPARSE_VALUES = span(1)
_TENSOR_TYPE, _TENSOR_NAME = number(2), span(8)
_INFO_NAME, _INFO_TYPE, _TYPE_OF_TENSOR, _ELEMENT_TYPE = span(1), span(2), span(1), number(1)

# How coarse types of TensorProto.DataType are, as places in _BY_COARSENESS; 0 is for all others. FLOAT16, BFLOAT16, and
# UINT8, INT8, then the floats and whole numbers of eight bits and fewer.
_COARSENESS = {10: 1, 16: 2, 2: 3, 3: 3} | dict.fromkeys(range(17, 27), 3)
# Operators that quantize, of ONNX and of ONNX Runtime's own, whatever the types that are written beside them: the
# default of QuantizeLinear is UINT8 and stands nowhere. What is dequantized has a type that counts anyway.
_QUANTIZES = re.compile(
    rb"\0(Dynamic)?Quantize.*|\0QLinear.*|\0QOrdered.*|\0(Conv|MatMul)Integer(ToFloat)?"
    rb"|\0MatMul(NBits|Bnb4|FpQ4)|\0GatherBlockQuantized|\0Q(Gemm|Attention|EmbedLayerNormalization|MoE)"
)
# Attributes whose number is an element type: of Cast, of generators, of DequantizeLinear, of normalizations' means, of
# Attention's softmax.
_TYPE_ATTRIBUTES = {b"to", b"dtype", b"output_dtype", b"stash_type", b"softmax_precision"}
# Before the name of an operator, to tell it from names of values: no value's name has a zero byte.
_OPERATOR = b"\0"
# Graphs in nodes of graphs; Protocol Buffers' own readers stop at 100 messages, which are 32 graphs.
_DEEPEST = 32
# What says more of its precision is none of ours; enough of it is shown.
_SHOWN_BYTES = 16


def onnx_precision(path: Path) -> str:
    """`fp32`, `fp16`, `bf16` or `int8`, the coarsest in which an ONNX file computes; `fp32` for what is no ONNX file.

    Where the property `PRECISION_KEY` is missing, the file is somebody else's, and its graph tells. It computes in a
    precision if the prediction is made, through whatever nodes, from

    - a value of that type: a cast's, a constant's, an input's, in the graph, its subgraphs or the functions it calls;
    - weights of that type, even if they are cast to float32 before they are used. They are other weights than were
      trained: the digits' U-Net with its weights alone rounded to fp16 (bf16) predicts with a relative error of 0.24 to
      0.38 times 2⁻¹¹ (0.31 to 0.49 times 2⁻⁸), and one that computes in fp16 throughout with 0.26 to 0.42 times 2⁻¹¹.

    What the prediction is not made from rounds nothing and does not count, for a float32 file would lose its faster
    backend by it; nor do the types that a file only notes beside its graph (`value_info`), which may be stale.

    `int8` is every quantized network: values or weights of eight bits or fewer, whole numbers or floats, and operators
    that quantize. It is the one precision that outweighs the property: quantizers keep the properties of the file that
    they are given.

    No weights are read, however large the file is.

    Raises:
        InputError: a property with a precision that this version does not know.
    """
    try:
        if not path.is_file():  # a pipe would wait for its writer
            return "fp32"
        with path.open("rb", buffering=0) as file:
            said, computed = _precisions(WireFile(file))
    except (OSError, ValueError, OverflowError):  # what is no such file is its reader's to report
        return "fp32"
    if said is None or computed == QUANTIZED:
        return computed
    if said not in LOW_PRECISIONS:
        shown = said if len(said) < _SHOWN_BYTES else said + "…"
        raise InputError(
            f"{path}: metadata {PRECISION_KEY} is {shown!r}, expected {' or '.join(LOW_PRECISIONS)}; "
            "make the file again with `python -m export.to_onnx`"
        )
    return said


@dataclass(slots=True)
class _Origin:
    """What something is made from: values and operators by their names, and how coarse a type."""

    names: list[bytes] = field(default_factory=list)
    coarseness: int = 0


class _Network:
    """Which value is made from what, and which are the results; of a graph or a function."""

    def __init__(self) -> None:
        self.results: list[bytes] = []
        self._origins: dict[bytes, list[_Origin]] = {}

    def add(self, origin: _Origin, makes: Iterable[bytes]) -> None:
        for name in filter(None, makes):  # an output that is left out has an empty name
            self._origins.setdefault(name, []).append(origin)

    def trace(self) -> tuple[set[bytes], int]:
        """The names of everything that the results are made from, and how coarse the coarsest of it is."""
        names, coarseness, left = set(self.results), 0, list(self.results)
        while left:
            for origin in self._origins.pop(left.pop(), ()):
                coarseness = max(coarseness, origin.coarseness)
                left += [name for name in origin.names if name not in names]
                names.update(origin.names)
                origin.names = []  # a node with many outputs is gone through once
        return names, coarseness


def _precisions(wire: WireFile) -> tuple[str | None, str]:
    """What the property says, and what the graph computes in."""
    said: str | None = None
    graphs, functions = [], []
    for tag, start, end in wire.fields(0, wire.size):
        if tag == _MODEL_PROPERTY:
            value = _said(wire, start, end)
            said = said if value is None else value
        elif tag == _MODEL_GRAPH:
            graphs.append((start, end))
        elif tag == _MODEL_FUNCTION:
            functions.append((start, end))
    network = _Network()
    try:
        for start, end in graphs:  # several are one in pieces
            _read_graph(wire, start, end, network, 1)
        for start, end in functions:
            _read_function(wire, start, end, network)
    except ValueError:
        if said is None:
            raise
        return said, "fp32"  # what the property says is known all the same
    return said, _BY_COARSENESS[network.trace()[1]]


def _said(wire: WireFile, start: int, end: int) -> str | None:
    key, said = b"", ""
    for tag, first, last in wire.fields(start, end):
        if tag == _PROPERTY_KEY:
            key = wire.content(first, last) if last - first == len(PRECISION_KEY) else b""
        elif tag == _PROPERTY_VALUE:
            said = wire.content(first, min(last, first + _SHOWN_BYTES)).decode(errors="replace")
    return said if key == PRECISION_KEY.encode() else None


def _read_graph(wire: WireFile, start: int, end: int, network: _Network, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} graphs in each other")
    for tag, first, last in wire.fields(start, end):
        if tag == _GRAPH_NODE:
            _read_node(wire, first, last, network, depth)
        elif tag == _GRAPH_TENSOR:
            name, coarseness = _tensor(wire, first, last)
            network.add(_Origin(coarseness=coarseness), [name])
        elif tag == _GRAPH_SPARSE:
            for name, coarseness in _sparse_values(wire, first, last):
                network.add(_Origin(coarseness=coarseness), [name])
        elif tag in (_GRAPH_INPUT, _GRAPH_OUTPUT):
            name, coarseness = _value_info(wire, first, last)
            network.add(_Origin(coarseness=coarseness), [name])
            if tag == _GRAPH_OUTPUT:
                network.results.append(name)


def _read_function(wire: WireFile, start: int, end: int, network: _Network) -> None:
    """Add a function to the network that may call it, as the origin of its operator."""
    inside, name = _Network(), b""
    for tag, first, last in wire.fields(start, end):
        if tag == _FUNCTION_NAME:
            name = wire.content(first, last)
        elif tag == _FUNCTION_OUTPUT:
            inside.results.append(wire.content(first, last))
        elif tag == _FUNCTION_NODE:
            _read_node(wire, first, last, inside, 1)
    names, coarseness = inside.trace()
    calls = [called for called in names if called.startswith(_OPERATOR)]
    network.add(_Origin(calls, coarseness), [_OPERATOR + name])


def _read_node(wire: WireFile, start: int, end: int, network: _Network, depth: int) -> None:
    origin, makes = _Origin(), []
    for tag, first, last in wire.fields(start, end):
        if tag == _NODE_INPUT:
            origin.names.append(wire.content(first, last))
        elif tag == _NODE_OUTPUT:
            makes.append(wire.content(first, last))
        elif tag == _NODE_OPERATOR:
            operator = _OPERATOR + wire.content(first, last)
            origin.names.append(operator)
            if _QUANTIZES.fullmatch(operator):
                origin.coarseness = _BY_COARSENESS.index(QUANTIZED)
        elif tag == _NODE_ATTRIBUTE:
            _read_attribute(wire, first, last, origin, depth)
    network.add(origin, makes)


def _read_attribute(wire: WireFile, start: int, end: int, origin: _Origin, depth: int) -> None:
    """Add what a node's attribute brings into what the node makes; of a subgraph, the values from outside too."""
    name, value, found = b"", 0, 0
    for tag, first, last in wire.fields(start, end):
        if tag == _ATTRIBUTE_NAME:
            name = wire.content(first, last)
        elif tag == _ATTRIBUTE_NUMBER:
            value = first
        elif tag in _ATTRIBUTE_TENSORS:
            found = max(found, _tensor(wire, first, last)[1])
        elif tag in _ATTRIBUTE_SPARSE:
            found = max(found, *(coarseness for _, coarseness in _sparse_values(wire, first, last)), 0)
        elif tag in _ATTRIBUTE_GRAPHS:
            inside = _Network()
            _read_graph(wire, first, last, inside, depth + 1)
            names, coarseness = inside.trace()
            origin.names += names
            found = max(found, coarseness)
    if name in _TYPE_ATTRIBUTES:
        found = max(found, _COARSENESS.get(value, 0))
    origin.coarseness = max(origin.coarseness, found)


def _sparse_values(wire: WireFile, start: int, end: int) -> list[tuple[bytes, int]]:
    return [_tensor(wire, first, last) for tag, first, last in wire.fields(start, end) if tag == _SPARSE_VALUES]


def _tensor(wire: WireFile, start: int, end: int) -> tuple[bytes, int]:
    """A tensor's name and how coarse its type is; its numbers are passed over."""
    name, element_type = b"", 0
    for tag, value, last in wire.fields(start, end):
        if tag == _TENSOR_TYPE:
            element_type = value
        elif tag == _TENSOR_NAME:
            name = wire.content(value, last)
    return name, _COARSENESS.get(element_type, 0)


def _value_info(wire: WireFile, start: int, end: int) -> tuple[bytes, int]:
    """The name of an input or output and how coarse its type is."""
    name, element_type = b"", 0
    for tag, first, last in wire.fields(start, end):
        if tag == _INFO_NAME:
            name = wire.content(first, last)
        elif tag == _INFO_TYPE:
            tensors = [(begin, stop) for kind, begin, stop in wire.fields(first, last) if kind == _TYPE_OF_TENSOR]
            for begin, stop in tensors:
                for kind, value, _ in wire.fields(begin, stop):
                    element_type = value if kind == _ELEMENT_TYPE else element_type
    return name, _COARSENESS.get(element_type, 0)
