"""How large a network is: its numbers, its floating-point operations for one image, its operators by count.

Of an ONNX graph, an OpenVINO network, or a PyTorch module; nothing is run. A multiplication and an addition are two
operations, and those of convolutions and matrix products alone are counted, as is usual.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from commands.errors import reason
from diffusion.errors import InputError

if TYPE_CHECKING:
    import onnx
    import torch

    from diffusion.conditions import Condition

MAX_XML_BYTES = 2**26
# The places of the factors among a node's inputs: QLinear's have a scale and a zero point after each.
_PRODUCTS = dict.fromkeys(("Conv", "ConvInteger", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger"), (0, 1))
_PRODUCTS |= dict.fromkeys(("QLinearConv", "QLinearMatMul"), (0, 3))
_SIZED = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"}


@dataclass(frozen=True)
class NetworkCounts:
    """The size of a network.

    Attributes:
        parameters: floating-point numbers that it holds; of a folded graph the tables of its time path among them.
        flops_per_image: of one call with one image; None where a shape does not follow from the inputs'.
        operators: how many of each kind, the most frequent first.
    """

    parameters: int
    flops_per_image: int | None
    operators: Mapping[str, int]


def count_module(
    module: torch.nn.Module, chw: tuple[int, int, int], conditions: Sequence[Condition] = ()
) -> NetworkCounts:
    """The counts of a PyTorch network under the network contract; its operators are the modules without parts.

    Args:
        module: takes x, t, and one tensor for each of the conditions.
        chw: of a sample.
        conditions: without guidance.
    """
    import copy

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    parameters = sum(parameter.numel() for parameter in module.parameters())
    operators = Counter(type(part).__name__ for part in module.modules() if not list(part.children()))
    with torch.inference_mode(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        fed = [torch.empty(1, *each.shape, dtype=getattr(torch, each.type)) for each in conditions]
        copy.deepcopy(module).to("meta")(torch.empty(1, *chw), torch.empty(1), *fed)
    return NetworkCounts(parameters, counter.get_total_flops(), _by_count(operators))


def count_onnx(model: onnx.ModelProto) -> NetworkCounts:
    """The counts of a graph, whose weights need not be loaded; its open first axes become 1, in place.

    Raises:
        InputError: a graph that contradicts itself.
    """
    import onnx

    from export.graph_facts import infer

    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        for entry in model.graph.input:
            shape = entry.type.tensor_type.shape
            if shape.dim and not shape.dim[0].dim_value:
                shape.dim[0].dim_value = 1
        entries = infer(model)
    except Exception as error:  # ONNX's exceptions have no common base
        raise InputError(f"ONNX's own checks refuse it ({reason(error)}); export it again") from error
    shapes = {
        entry.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in entry.type.tensor_type.shape.dim]
        for entry in entries
        if entry.type.tensor_type.HasField("shape")
    }
    nodes = list(_nodes(model.graph))
    flops: list[int | None] = [_onnx_flops(node, shapes) for node in nodes]
    total = None if None in flops else sum(each or 0 for each in flops)
    return NetworkCounts(_onnx_numbers(model.graph), total, _by_count(Counter(node.op_type for node in nodes)))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    from export.graph_facts import subgraphs

    for node in graph.node:
        yield node
        for subgraph in subgraphs(node):
            yield from _nodes(subgraph)


def _onnx_numbers(graph: onnx.GraphProto) -> int:
    from onnx import TensorProto

    from export.graph_facts import subgraphs

    floating = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    quantized = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)
    counted = (*floating, *quantized, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)
    total = sum(math.prod(tensor.dims) for tensor in graph.initializer if tensor.data_type in counted)
    for node in graph.node:
        total += sum(
            math.prod(entry.t.dims)
            for entry in node.attribute
            if node.op_type == "Constant" and entry.name == "value" and entry.t.data_type in counted
        )
        total += sum(map(_onnx_numbers, subgraphs(node)))
    return total


def _onnx_flops(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int | None]]) -> int | None:
    """Of one node; 0 for all but convolutions and matrix products."""
    from export.graph_facts import attribute

    if node.op_type not in _PRODUCTS:
        return 0
    if len(node.input) <= max(_PRODUCTS[node.op_type]):  # somebody's own operator of that name
        return None
    first, second = (shapes.get(node.input[place]) for place in _PRODUCTS[node.op_type])
    result = shapes.get(node.output[0])
    if first is None or second is None or result is None or None in (*first, *second, *result):
        return None
    a, b, y = ([int(size or 0) for size in shape] for shape in (first, second, result))
    if node.op_type == "ConvTranspose":  # weights [C_in, C_out / groups, ...]
        return 2 * math.prod(a) * math.prod(b[1:])
    if "Conv" in node.op_type:  # weights [C_out, C_in / groups, ...]
        return 2 * math.prod(y) * math.prod(b[1:])
    inner = a[0] if node.op_type == "Gemm" and attribute(node, "transA", 0) else a[-1]
    return 2 * math.prod(y) * inner


def count_openvino(path: Path) -> NetworkCounts:
    """The counts of an OpenVINO network, by its `.xml` alone.

    Raises:
        InputError: it cannot be read, or is no such network.
    """
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise InputError(f"{path}: is larger than {MAX_XML_BYTES} bytes, expected an OpenVINO network")
        root = ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name another") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path}: is not XML ({error}); make it again with `python -m export.to_openvino`") from None
    layers = root.findall("./layers/layer")
    if root.tag != "net" or not layers:
        raise InputError(f"{path}: holds no network of OpenVINO; make one with `python -m export.to_openvino`")
    numbers, operators, flops = 0, Counter[str](), list[int | None]()
    for layer in layers:
        kind = layer.get("type", "?")
        if kind == "Const":
            data = layer.find("data")
            floating = data is not None and data.get("element_type") in ("f64", "f32", "f16", "bf16", "i8", "u8")
            numbers += math.prod(_sizes(data.get("shape", ""))) if floating and data is not None else 0
        elif kind not in ("Parameter", "Result"):
            operators[kind] += 1
        if kind in _SIZED:
            flops.append(_openvino_flops(layer, kind))
    total = None if None in flops else sum(each or 0 for each in flops)
    return NetworkCounts(numbers, total, _by_count(operators))


def _openvino_flops(layer: ElementTree.Element, kind: str) -> int | None:
    shapes = []
    for group in ("input", "output"):
        for port in layer.findall(f"./{group}/port"):
            sizes = [int(dim.text or "-1") for dim in port.findall("dim")]
            # The batch alone is open in what our exporter writes.
            shapes.append([1 if place == 0 and size < 0 else size for place, size in enumerate(sizes)])
    if len(shapes) != 3 or any(size < 0 for shape in shapes for size in shape):
        return None
    a, b, y = shapes
    if kind == "MatMul":
        data = layer.find("data")
        turned = data is not None and data.get("transpose_a") == "true"
        return 2 * math.prod(y) * (a[-2] if turned else a[-1])
    if kind == "ConvolutionBackpropData":  # transposed; weights [C_in, C_out, ...]
        return 2 * math.prod(a) * math.prod(b[1:])
    return 2 * math.prod(y) * math.prod(b[2 if kind == "GroupConvolution" else 1 :])


def _sizes(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [int(part) if part.isascii() and part.isdecimal() else 0 for part in parts]


def _by_count(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda entry: (-entry[1], entry[0])))
