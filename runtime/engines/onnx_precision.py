"""In which precision an ONNX file of somebody else's computes: by its graph, or as an older file of ours says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.errors import InputError
from runtime.formats.precision import BF16, FP16, INT8, PRECISIONS

if TYPE_CHECKING:
    import onnx

PRECISION_KEY = "ddpm-rt-precision"
"""The metadata property of an ONNX file whose arithmetic is not float32: `fp16` or `bf16`."""

LOW_PRECISIONS = (FP16.name, BF16.name)
"""What the property may say."""

_QUANTIZED = INT8.name
_BY_COARSENESS = tuple(PRECISIONS)  # the coarser one last

# How coarse types of TensorProto.DataType are, as places in _BY_COARSENESS; 0 is for all others. FLOAT16, BFLOAT16, and
# UINT8, INT8, then the floats and whole numbers of eight bits and fewer.
_COARSENESS = {10: 1, 16: 2, 2: 3, 3: 3} | dict.fromkeys(range(17, 27), 3)
# Operators that quantize, of ONNX and of ONNX Runtime's own, whatever the types that are written beside them: the
# default of QuantizeLinear is UINT8 and stands nowhere. What is dequantized has a type that counts anyway.
_QUANTIZES = re.compile(
    "(Dynamic)?Quantize.*|QLinear.*|QOrdered.*|(Conv|MatMul)Integer(ToFloat)?"
    "|MatMul(NBits|Bnb4|FpQ4)|GatherBlockQuantized|Q(Gemm|Attention|EmbedLayerNormalization|MoE)"
)
# Attributes whose number is an element type: of Cast, of generators, of DequantizeLinear, of normalizations' means, of
# Attention's softmax.
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "stash_type", "softmax_precision"}
# Before the name of an operator, to tell it from names of values: no value's name has a zero byte.
_OPERATOR = "\0"
_SHOWN_CHARACTERS = 16


def model_precision(path: Path, model: onnx.ModelProto) -> str:
    """`fp32`, `fp16`, `bf16` or `int8`, the coarsest in which a model computes.

    It computes in a precision if the prediction is made, through whatever nodes, from

    - a value of that type: a cast's, a constant's, an input's, in the graph, its subgraphs or the functions it calls;
    - weights of that type, even if they are cast to float32 before they are used. They are other weights than were
      trained: the digits' U-Net with its weights alone rounded to fp16 (bf16) predicts with a relative error of 0.24 to
      0.38 times 2⁻¹¹ (0.31 to 0.49 times 2⁻⁸), and one that computes in fp16 throughout with 0.26 to 0.42 times 2⁻¹¹.

    What the prediction is not made from rounds nothing and does not count, for a float32 file would lose its faster
    backend by it; nor do the types that a file only notes beside its graph (`value_info`), which may be stale.

    `int8` is every quantized network: values or weights of eight bits or fewer, whole numbers or floats, and operators
    that quantize. Of the others the property `PRECISION_KEY` is believed; not of quantized ones, because quantizers
    keep the properties of the file that they are given.

    Args:
        path: of the file, for the error.
        model: without the values of its weights, or with them.

    Raises:
        InputError: a property with a precision that this version does not know.
    """
    network = _Network()
    _read_graph(model.graph, network)
    for function in model.functions:
        _read_function(function, network)
    computed = _BY_COARSENESS[network.trace()[1]]
    said = [entry.value for entry in model.metadata_props if entry.key == PRECISION_KEY][-1:]
    if not said or computed == _QUANTIZED:
        return computed
    if said[0] not in LOW_PRECISIONS:
        shown = said[0] if len(said[0]) < _SHOWN_CHARACTERS else said[0][:_SHOWN_CHARACTERS] + "…"
        raise InputError(
            f"{path}: metadata {PRECISION_KEY} is {shown!r}, expected {' or '.join(LOW_PRECISIONS)}; "
            "make the file again with `python -m export.to_onnx`"
        )
    return said[0]


@dataclass(slots=True)
class _Origin:
    """What something is made from: values and operators by their names, and how coarse a type."""

    names: list[str] = field(default_factory=list)
    coarseness: int = 0


class _Network:
    """Which value is made from what, and which are the results; of a graph or a function."""

    def __init__(self) -> None:
        self.results: list[str] = []
        self._origins: dict[str, list[_Origin]] = {}

    def add(self, origin: _Origin, makes: Iterable[str]) -> None:
        for name in filter(None, makes):  # an output that is left out has an empty name
            self._origins.setdefault(name, []).append(origin)

    def trace(self) -> tuple[set[str], int]:
        """The names of everything that the results are made from, and how coarse the coarsest of it is."""
        names, coarseness, left = set(self.results), 0, list(self.results)
        while left:
            for origin in self._origins.pop(left.pop(), ()):
                coarseness = max(coarseness, origin.coarseness)
                left += [name for name in origin.names if name not in names]
                names.update(origin.names)
                origin.names = []  # a node with many outputs is gone through once
        return names, coarseness


def _read_graph(graph: onnx.GraphProto, network: _Network) -> None:
    for node in graph.node:
        network.add(_node_origin(node), node.output)
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        network.add(_Origin(coarseness=_tensor(tensor)), [tensor.name])
    for entry in (*graph.input, *graph.output):
        coarseness = _COARSENESS.get(entry.type.tensor_type.elem_type, 0)
        network.add(_Origin(coarseness=coarseness), [entry.name])
    network.results += [entry.name for entry in graph.output]


def _read_function(function: onnx.FunctionProto, network: _Network) -> None:
    """Add a function to the network that may call it, as the origin of its operator."""
    inside = _Network()
    inside.results += function.output
    for node in function.node:
        inside.add(_node_origin(node), node.output)
    names, coarseness = inside.trace()
    calls = [called for called in names if called.startswith(_OPERATOR)]
    network.add(_Origin(calls, coarseness), [_OPERATOR + function.name])


def _node_origin(node: onnx.NodeProto) -> _Origin:
    """What a node's outputs are made from; of its subgraphs, the values from outside too."""
    origin = _Origin([*node.input, _OPERATOR + node.op_type])
    found = [_BY_COARSENESS.index(_QUANTIZED)] if _QUANTIZES.fullmatch(node.op_type) else []
    for attribute in node.attribute:
        if attribute.name in _TYPE_ATTRIBUTES:
            found.append(_COARSENESS.get(attribute.i, 0))
        # A field of one message that is absent reads as an empty one, which is of no type and makes nothing.
        sparse = (attribute.sparse_tensor, *attribute.sparse_tensors)
        found += map(_tensor, (attribute.t, *attribute.tensors, *(each.values for each in sparse)))
        for graph in (attribute.g, *attribute.graphs):
            inside = _Network()
            _read_graph(graph, inside)
            names, coarseness = inside.trace()
            origin.names += names
            found.append(coarseness)
    origin.coarseness = max(found, default=0)
    return origin


def _tensor(tensor: onnx.TensorProto) -> int:
    """How coarse a tensor's type is."""
    return _COARSENESS.get(tensor.data_type, 0)
