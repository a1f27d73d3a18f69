"""Element-wise operations on rows of H·W pixels instead of W: the same numbers, fewer and fuller vectors.

OpenVINO's CPU kernels for element-wise operations that differ by channel go along the last axis alone. A row of four or
eight pixels does not fill a vector of 16 numbers, and every one of them is handled as a remainder: on 4×4 maps, in
bf16, a SiLU takes longer than the 3×3 convolution behind it (measured in docs/openvino-profile.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.network_io import tensor_shapes

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Sigmoid", "Tanh", "Relu", "Neg", "Exp", "Erf"}


@dataclass(frozen=True)
class _Region:
    """Element-wise operations behind a Reshape to an image, which need nothing of its height and width.

    Attributes:
        reshape: that makes the image, from something that need not have been one.
        nodes: the operations, in the graph's order.
        channels, height, width: of every image in the region.
    """

    reshape: onnx.NodeProto
    nodes: list[onnx.NodeProto]
    channels: int
    height: int
    width: int

    @property
    def images(self) -> list[str]:
        """The names of the images in the region."""
        return [self.reshape.output[0], *(node.output[0] for node in self.nodes)]


def flatten_images(model: onnx.ModelProto) -> int:
    """Let element-wise operations behind a group normalization see [N, C, H·W]. Changes the model in place.

    Returns:
        How many regions of such operations there are.
    """
    shapes = tensor_shapes(model)
    regions = list(_regions(model.graph, shapes))
    for region in regions:
        _flatten(model.graph, region, shapes)
    return len(regions)


def _regions(graph: onnx.GraphProto, shapes: dict[str, tuple[int, ...]]) -> Iterator[_Region]:
    constants = {entry.name for entry in graph.initializer}
    for reshape in graph.node:
        shape = shapes.get(reshape.output[0], ())
        if reshape.op_type != "Reshape" or reshape.input[1] not in constants or len(shape) != 4 or 0 in shape[1:]:
            continue
        region = _Region(reshape, [], *shape[1:])
        images = {reshape.output[0]}
        for node in graph.node:
            if images.isdisjoint(node.input) or node.op_type not in _ELEMENTWISE:
                continue
            others = [name for name in node.input if name not in images]
            if all(_one_for_each_channel(shapes.get(name), region.channels) for name in others):
                region.nodes.append(node)
                images.add(node.output[0])
        if region.nodes:
            yield region


def _one_for_each_channel(shape: tuple[int, ...] | None, channels: int) -> bool:
    """Whether an operand of [N, C, H, W] does not vary within a channel: one number, or [C, 1, 1], [N, C, 1, 1]."""
    if shape is None or len(shape) > 4:
        return False
    return math.prod(shape) == 1 or (len(shape) > 2 and shape[-3:] in ((channels, 1, 1), (1, 1, 1)))


def _flatten(graph: onnx.GraphProto, region: _Region, shapes: dict[str, tuple[int, ...]]) -> None:
    weights = {entry.name: entry for entry in graph.initializer}
    inside = set(region.images)
    flat = {name: f"{name}_rows" for name in region.images}
    stem = region.reshape.output[0]
    region.reshape.input[1] = _constant(graph, f"{stem}/rows", [0, region.channels, region.height * region.width])
    for node in region.nodes:
        for place, name in enumerate(node.input):
            if name in inside:
                node.input[place] = flat[name]
            elif len(shapes[name]) > 2:
                node.input[place] = _without_last_axis(graph, weights, node, name, shapes[name])
    read_outside = {entry.name for entry in graph.output}
    read_outside |= {name for node in graph.node for name in node.input}
    for node in [region.reshape, *region.nodes]:
        name = node.output[0]
        node.output[0] = flat[name]
        if name in read_outside:
            target = _constant(graph, f"{stem}/image", [0, region.channels, region.height, region.width])
            back = helper.make_node("Reshape", [flat[name], target], [name], name=f"{node.name or name}/Image")
            graph.node.insert(list(graph.node).index(node) + 1, back)


def _without_last_axis(
    graph: onnx.GraphProto,
    weights: dict[str, onnx.TensorProto],
    node: onnx.NodeProto,
    name: str,
    shape: tuple[int, ...],
) -> str:
    """The operand [.., C, 1, 1] as [.., C, 1]."""
    flat = f"{name}_rows"
    if flat in weights or any(flat in other.output for other in graph.node):
        return flat
    if name in weights:
        values = numpy_helper.to_array(weights[name])[..., 0]
        weights[flat] = numpy_helper.from_array(np.ascontiguousarray(values), flat)
        graph.initializer.append(weights[flat])
        return flat
    target = _constant(graph, f"{name}/rows", [0, *shape[1:-1]])
    reshape = helper.make_node("Reshape", [name, target], [flat], name=f"{name}/Rows")
    graph.node.insert(list(graph.node).index(node), reshape)
    return flat


def _constant(graph: onnx.GraphProto, name: str, values: list[int]) -> str:
    if all(entry.name != name for entry in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
    return name
