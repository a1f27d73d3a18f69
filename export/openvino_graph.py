"""Rewrites that make OpenVINO's engines faster and keep the network's function (see docs/openvino-profile.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graph_facts import GraphFacts, Shape, attribute, drop_unread, is_standard, name_nodes, opset_of

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
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Sigmoid", "Tanh", "Relu", "Neg", "Exp", "Erf"}


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


@dataclass(frozen=True)
class _Region:
    """Element-wise operations behind a Reshape to an image that do not depend on its height and width.

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

    OpenVINO's CPU kernels for element-wise operations that differ by channel go along the last axis alone. A row of
    four or eight pixels does not fill a vector of 16 numbers, and every one of them is handled as a remainder: on 4×4
    maps, in bf16, a SiLU takes longer than the 3×3 convolution behind it.

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
