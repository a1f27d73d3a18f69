"""Rewrites that make OpenVINO's engines faster and the network no other (measured in docs/openvino-profile.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.flat_images import flatten_images
from export.graph_facts import GraphFacts, attribute, drop_unread, is_standard, name_nodes, opset_of

# Below this many multiplications per sample a transposed convolution costs more to start than it saves: of 8×8
# networks it slows a single sample, of 32×32 ones it speeds up every upsampling.
_MIN_MULTIPLICATIONS = 2**24
_MIN_OPSET = 13  # since when Split takes its sizes as an input
# Ways to say "every pixel twice" of a Resize by 2: (coordinate_transformation_mode, nearest_mode).
_TWICE = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_ceil"),
}


@dataclass(frozen=True)
class Rewriting:
    """What was rewritten.

    Attributes:
        merged_lookups: lookups of time tables that are one now.
        transposed_convolutions: upsamplings that became part of the convolution after them.
        flattened_images: groups of element-wise operations that see rows of H·W pixels.
    """

    merged_lookups: int = 0
    transposed_convolutions: int = 0
    flattened_images: int = 0


def rewrite_for_openvino(model: onnx.ModelProto, t_name: str) -> Rewriting:
    """Apply all rewrites, in place.

    Args:
        model: with `t` as integers, if its time path is folded.
        t_name: the input that rows are looked up by.
    """
    if opset_of(model) < _MIN_OPSET:
        return Rewriting()
    rewriting = Rewriting(_merge_lookups(model, t_name), _transpose_convolutions(model), flatten_images(model))
    name_nodes(model)
    onnx.checker.check_model(model)
    return rewriting


def _merge_lookups(model: onnx.ModelProto, t_name: str) -> int:
    """Look all time tables [T, C_i, 1, 1] up at once and split the row, instead of one by one: 22 launches less."""
    graph, facts = model.graph, GraphFacts(model)
    by_length: dict[int, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if _is_lookup(node, t_name, facts):
            by_length.setdefault(facts.constants[node.input[0]].dims[0], []).append(node)
    lookups = max(by_length.values(), key=len, default=[])  # tables of another length are looked up by themselves
    if len(lookups) < 2:
        return 0
    tables = [numpy_helper.to_array(facts.constants[node.input[0]]) for node in lookups]
    outputs = [node.output[0] for node in lookups]
    for node in lookups:
        graph.node.remove(node)
    drop_unread(graph, {node.input[0] for node in lookups})
    table, sizes, rows = (facts.free_name(stem) for stem in ("time_tables", "time_table_channels", "time_rows"))
    graph.initializer.append(numpy_helper.from_array(np.concatenate(tables, axis=1), table))
    channels = np.array([table.shape[1] for table in tables], dtype=np.int64)
    graph.initializer.append(numpy_helper.from_array(channels, sizes))
    gather = helper.make_node("Gather", [table, t_name], [rows], name="time_tables/Gather", axis=0)
    split = helper.make_node("Split", [rows, sizes], outputs, name="time_tables/Split", axis=1)
    graph.node.insert(0, split)
    graph.node.insert(0, gather)
    return len(lookups)


def _is_lookup(node: onnx.NodeProto, t_name: str, facts: GraphFacts) -> bool:
    if not is_standard(node, "Gather") or node.input[1] != t_name or attribute(node, "axis", 0) != 0:
        return False
    table = facts.constants.get(node.input[0])
    return table is not None and table.data_type == onnx.TensorProto.FLOAT and list(table.dims[2:]) == [1, 1]


def _transpose_convolutions(model: onnx.ModelProto) -> int:
    """Every pixel twice and then a 3×3 convolution is a transposed 4×4 convolution of stride 2, at 4/9 of the work.

    Of the four output pixels that an input pixel becomes, each sees only 2×2 different input pixels.
    """
    graph, facts = model.graph, GraphFacts(model)
    names: dict[str, str] = {}  # of transposed kernels, which several convolutions may share
    found = 0
    for resize, convolution in list(_upsamplings(graph, facts)):
        kernel = numpy_helper.to_array(facts.constants[convolution.input[1]])  # [C_out, C_in, 3, 3]
        if _pixels(facts, convolution.output[0]) * kernel.size < _MIN_MULTIPLICATIONS:
            continue
        if convolution.input[1] not in names:
            name = names[convolution.input[1]] = facts.free_name(f"{convolution.input[1]}_transposed")
            graph.initializer.append(numpy_helper.from_array(transposed_kernel(kernel), name))
        node = helper.make_node(
            "ConvTranspose",
            [resize.input[0], names[convolution.input[1]], *convolution.input[2:]],
            [convolution.output[0]],
            name=f"{convolution.name}/Transposed",
            kernel_shape=[4, 4],
            strides=[2, 2],
            pads=[1, 1, 1, 1],
        )
        place = list(graph.node).index(convolution)
        graph.node.insert(place, node)
        graph.node.remove(resize)
        graph.node.remove(convolution)
        found += 1
    drop_unread(graph, set(names))
    return found


def transposed_kernel(kernel: np.ndarray) -> np.ndarray:
    """[C_out, C_in, 3, 3] over doubled pixels as [C_in, C_out, 4, 4] of a transposed convolution, summed in float64.

    In one dimension output 2m reads w0·x[m−1] + (w1+w2)·x[m], output 2m+1 (w0+w1)·x[m] + w2·x[m+1]; and a transposed
    convolution of stride 2 and padding 1 gives output o the tap o + 1 − 2i of input i.
    """
    wide = kernel.astype(np.float64)
    for axis in (2, 3):
        w0, w1, w2 = np.moveaxis(wide, axis, 0)
        wide = np.stack([w2, w1 + w2, w0 + w1, w0], axis=axis)
    return np.ascontiguousarray(wide.transpose(1, 0, 2, 3)).astype(np.float32)


def _pixels(facts: GraphFacts, name: str) -> int:
    """H·W of an image whose size is certain, else 0."""
    sizes = [size for size in facts.shapes.get(name, ())[2:] if isinstance(size, int)]
    return sizes[0] * sizes[1] if len(sizes) == 2 else 0


def _upsamplings(graph: onnx.GraphProto, facts: GraphFacts) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Each Resize that doubles pixels together with the 3×3 convolution that alone reads it."""
    for resize in graph.node:
        if is_standard(resize, "Resize") and _doubles_pixels(resize, facts):
            convolution = facts.only_reader(resize.output[0], "Conv")
            if convolution is not None and _is_plain_convolution(convolution, resize.output[0], facts):
                yield resize, convolution


def _doubles_pixels(resize: onnx.NodeProto, facts: GraphFacts) -> bool:
    scales = facts.numbers(resize.input[2]) if len(resize.input) > 2 else None
    ways = (
        attribute(resize, "coordinate_transformation_mode", "half_pixel"),
        attribute(resize, "nearest_mode", "round_prefer_floor"),
    )
    return (
        attribute(resize, "mode", "nearest") == "nearest"
        and ways in _TWICE
        and not any(entry.name == "axes" for entry in resize.attribute)
        and scales is not None
        and scales.tolist() == [1, 1, 2, 2]
    )


def _is_plain_convolution(node: onnx.NodeProto, x: str, facts: GraphFacts) -> bool:
    if node.input[0] != x or x in node.input[1:]:
        return False
    kernel = facts.constants.get(node.input[1])
    return (
        kernel is not None
        and kernel.data_type == onnx.TensorProto.FLOAT
        and list(kernel.dims[2:]) == [3, 3]
        and attribute(node, "auto_pad", "NOTSET") == "NOTSET"
        and attribute(node, "pads", [0] * 4) == [1] * 4
        and attribute(node, "strides", [1, 1]) == [1, 1]
        and attribute(node, "dilations", [1, 1]) == [1, 1]
        and attribute(node, "group", 1) == 1
    )
