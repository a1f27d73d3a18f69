"""Element-wise operations on rows of H·W pixels instead of W: the same numbers, fewer and fuller vectors.

OpenVINO's CPU kernels for element-wise operations that differ by channel go along the last axis alone. A row of four or
eight pixels does not fill a vector of 16 numbers, and every one of them is handled as a remainder: on 4×4 maps, in
bf16, a SiLU takes longer than the 3×3 convolution behind it (measured in docs/openvino-profile.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graph_facts import GraphFacts, Shape, attribute, is_standard

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Sigmoid", "Tanh", "Relu", "Neg", "Exp", "Erf"}


@dataclass(frozen=True)
class _Region:
    """Element-wise operations behind a Reshape to an image, which need nothing of its height and width.

    Attributes:
        reshape: that makes the image, from something that need not have been one.
        first: the reshape's size of the image's first axis: 0 for its input's, −1 for what is left, or a number.
        nodes: the operations, in the graph's order.
        channels, height, width: of every image in the region.
    """

    reshape: onnx.NodeProto
    first: int
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

    What the images are made from may be anything: of their first axis the rows keep whatever the Reshape says, and
    height and width are certain, or the operations stay as they are.

    Returns:
        How many regions of such operations there are.
    """
    facts = GraphFacts(model)
    rewriter = _Rewriter(model.graph, facts)
    regions = list(_regions(model.graph, facts))
    for region in regions:
        rewriter.flatten(region)
    return len(regions)


def _regions(graph: onnx.GraphProto, facts: GraphFacts) -> Iterator[_Region]:
    taken: set[str] = set()
    for reshape in graph.node:
        first = _first_size(reshape, facts)
        sizes = [size for size in facts.shapes.get(reshape.output[0], ())[1:] if isinstance(size, int) and size > 0]
        if first is None or len(sizes) != 3:
            continue
        channels, height, width = sizes
        region = _Region(reshape, first, [], channels, height, width)
        images = {reshape.output[0]}
        for node in graph.node:
            if images.isdisjoint(node.input) or not is_standard(node, *_ELEMENTWISE) or node.output[0] in taken:
                continue
            others = [name for name in node.input if name not in images]
            if all(_one_for_each_channel(facts.shapes.get(name), channels) for name in others):
                region.nodes.append(node)
                images.add(node.output[0])
        if region.nodes:
            taken |= images
            yield region


def _first_size(reshape: onnx.NodeProto, facts: GraphFacts) -> int | None:
    """The first size of a Reshape to constant sizes; None for another node, or a size that is not certain."""
    if not is_standard(reshape, "Reshape") or len(reshape.input) != 2:
        return None
    target = facts.numbers(reshape.input[1])
    if target is None or target.shape != (4,) or (0 in target and attribute(reshape, "allowzero", 0) != 0):
        return None
    return int(target[0])


def _one_for_each_channel(shape: Shape | None, channels: int) -> bool:
    """Whether an operand of [N, C, H, W] does not vary within a channel: one number, or [C, 1, 1], [N, C, 1, 1]."""
    if shape is None or len(shape) > 4:
        return False
    return all(size == 1 for size in shape) or (len(shape) > 2 and shape[-3:] in ((channels, 1, 1), (1, 1, 1)))


class _Rewriter:
    """Writes regions as rows."""

    def __init__(self, graph: onnx.GraphProto, facts: GraphFacts) -> None:
        self._graph, self._facts = graph, facts
        self._targets: dict[tuple[int, ...], str] = {}

    def flatten(self, region: _Region) -> None:
        flat = {name: self._facts.free_name(f"{name}_rows") for name in region.images}
        operands: dict[str, str] = {}
        pixels = region.height * region.width
        region.reshape.input[1] = self._target([region.first, region.channels, pixels])
        for node in region.nodes:
            for place, name in enumerate(node.input):
                if name in flat:
                    node.input[place] = flat[name]
                elif len(self._facts.shapes[name]) > 2:
                    if name not in operands:  # the region's first reader: it comes before the others
                        operands[name] = self._without_last_axis(node, name)
                    node.input[place] = operands[name]
        inside = {id(node) for node in region.nodes}
        for node in [region.reshape, *region.nodes]:
            name = node.output[0]
            node.output[0] = flat[name]
            readers = self._facts.readers.get(name, [])
            if name in self._facts.outputs or any(id(reader) not in inside for reader in readers):
                target = self._target([0, region.channels, region.height, region.width])
                back = helper.make_node("Reshape", [flat[name], target], [name], name=f"{node.name or name}/Image")
                self._graph.node.insert(_place(self._graph, node) + 1, back)

    def _without_last_axis(self, node: onnx.NodeProto, name: str) -> str:
        """The operand [.., C, 1, 1] as [.., C, 1]."""
        flat = self._facts.free_name(f"{name}_rows")
        numbers = self._facts.numbers(name)
        if numbers is not None:
            self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(numbers[..., 0]), flat))
        else:
            target = self._target([0, *(int(size) for size in self._facts.shapes[name][1:-1])])
            reshape = helper.make_node("Reshape", [name, target], [flat], name=f"{name}/Rows")
            self._graph.node.insert(_place(self._graph, node), reshape)
        return flat

    def _target(self, sizes: list[int]) -> str:
        key = tuple(sizes)
        if key not in self._targets:
            name = self._targets[key] = self._facts.free_name("rows_" + "_".join(map(str, sizes)))
            self._graph.initializer.append(numpy_helper.from_array(np.array(sizes, dtype=np.int64), name))
        return self._targets[key]


def _place(graph: onnx.GraphProto, wanted: onnx.NodeProto) -> int:
    return next(place for place, node in enumerate(graph.node) if node.output == wanted.output)
