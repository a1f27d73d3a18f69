"""Rewrites that make OpenVINO's engines faster and the network no other (measured in docs/openvino-profile.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.flat_images import flatten_images

# Below this many multiplications per sample a transposed convolution costs more to start than it saves: of 8×8
# networks it slows a single sample, of 32×32 ones it speeds up every upsampling.
_LEAST_MULTIPLICATIONS = 2**24
_LEAST_OPSET = 13  # since when Split takes its sizes as an input
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
    if next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0) < _LEAST_OPSET:
        return Rewriting()
    rewriting = Rewriting(_merge_lookups(model.graph, t_name), _transpose_convolutions(model), flatten_images(model))
    onnx.checker.check_model(model)
    return rewriting


def _merge_lookups(graph: onnx.GraphProto, t_name: str) -> int:
    """Look all time tables [T, C_i, 1, 1] up at once and split the row, instead of one by one: 22 launches less."""
    weights = {entry.name: entry for entry in graph.initializer}
    lookups = [node for node in graph.node if _is_lookup(node, t_name, weights)]
    if len(lookups) < 2:
        return 0
    tables = [numpy_helper.to_array(weights[node.input[0]]) for node in lookups]
    for node in lookups:
        graph.node.remove(node)
    for name in {node.input[0] for node in lookups}:
        graph.initializer.remove(weights[name])
    graph.initializer.append(numpy_helper.from_array(np.concatenate(tables, axis=1), "time_tables"))
    sizes = np.array([table.shape[1] for table in tables], dtype=np.int64)
    graph.initializer.append(numpy_helper.from_array(sizes, "time_table_channels"))
    outputs = [node.output[0] for node in lookups]
    gather = helper.make_node("Gather", ["time_tables", t_name], ["time_rows"], name="time_tables/Gather", axis=0)
    split = helper.make_node("Split", ["time_rows", "time_table_channels"], outputs, name="time_tables/Split", axis=1)
    graph.node.insert(0, split)
    graph.node.insert(0, gather)
    return len(lookups)


def _is_lookup(node: onnx.NodeProto, t_name: str, weights: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Gather" or node.input[1] != t_name or _attribute(node, "axis", 0) != 0:
        return False
    table = weights.get(node.input[0])
    return table is not None and table.data_type == onnx.TensorProto.FLOAT and list(table.dims[2:]) == [1, 1]


def _transpose_convolutions(model: onnx.ModelProto) -> int:
    """Every pixel twice and then a 3×3 convolution is a transposed 4×4 convolution of stride 2, at 4/9 of the work.

    Of the four output pixels that an input pixel becomes, each sees only 2×2 different input pixels.
    """
    graph = model.graph
    weights = {entry.name: entry for entry in graph.initializer}
    pixels = _pixels(model)
    found = 0
    for resize, convolution in list(_upsamplings(graph, weights)):
        kernel = numpy_helper.to_array(weights[convolution.input[1]])  # [C_out, C_in, 3, 3]
        if pixels.get(convolution.output[0], 0) * kernel.size < _LEAST_MULTIPLICATIONS:
            continue
        name = f"{convolution.input[1]}_transposed"
        graph.initializer.append(numpy_helper.from_array(transposed_kernel(kernel), name))
        node = helper.make_node(
            "ConvTranspose",
            [resize.input[0], name, *convolution.input[2:]],
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
        if not any(convolution.input[1] in other.input for other in graph.node):
            graph.initializer.remove(weights[convolution.input[1]])
        found += 1
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


def _pixels(model: onnx.ModelProto) -> dict[str, int]:
    """H·W of every image in the graph whose shape follows from the inputs'."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {entry.name: entry.type.tensor_type.shape.dim for entry in [*inferred.value_info, *inferred.output]}
    return {name: dims[2].dim_value * dims[3].dim_value for name, dims in shapes.items() if len(dims) == 4}


def _upsamplings(
    graph: onnx.GraphProto, weights: dict[str, onnx.TensorProto]
) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Each Resize that doubles pixels together with the 3×3 convolution that alone reads it."""
    outputs = {entry.name for entry in graph.output}
    for resize in graph.node:
        if resize.op_type != "Resize" or not _doubles_pixels(resize, weights) or resize.output[0] in outputs:
            continue
        readers = [node for node in graph.node if resize.output[0] in node.input]
        if len(readers) == 1 and _is_plain_convolution(readers[0], resize.output[0], weights):
            yield resize, readers[0]


def _doubles_pixels(resize: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    scales = weights.get(resize.input[2]) if len(resize.input) > 2 else None
    ways = (
        _attribute(resize, "coordinate_transformation_mode", "half_pixel"),
        _attribute(resize, "nearest_mode", "round_prefer_floor"),
    )
    return (
        _attribute(resize, "mode", "nearest") == "nearest"
        and ways in _TWICE
        and not any(entry.name == "axes" for entry in resize.attribute)
        and scales is not None
        and numpy_helper.to_array(scales).tolist() == [1, 1, 2, 2]
    )


def _is_plain_convolution(node: onnx.NodeProto, x: str, weights: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Conv" or node.input[0] != x or x in node.input[1:]:
        return False
    kernel = weights.get(node.input[1])
    return (
        kernel is not None
        and kernel.data_type == onnx.TensorProto.FLOAT
        and list(kernel.dims[2:]) == [3, 3]
        and _attribute(node, "auto_pad", "NOTSET") == "NOTSET"
        and _attribute(node, "pads", [0] * 4) == [1] * 4
        and _attribute(node, "strides", [1, 1]) == [1, 1]
        and _attribute(node, "dilations", [1, 1]) == [1, 1]
        and _attribute(node, "group", 1) == 1
    )


def _attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            if isinstance(value, bytes):
                return value.decode()
            return list(value) if isinstance(default, list) else value
    return default
