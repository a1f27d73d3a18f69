"""Random networks that ONNX Runtime runs at any batch: samples fold into each other, names and forms are anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

C, H, W = 4, 2, 6
NUM_TIMESTEPS = 12
# What our rewrites would like to call their tensors, and must not take for theirs.
OUR_NAMES = (
    "time_tables", "time_rows", "time_table", "time_table_channels", "t_value", "kernel_transposed", "prediction",
    "rows_0_4_12", "rows_-1_4_12", "rows_0_4", "image_rows", "x_rows", "x", "t", "x_float32", "prediction_float32",
    "ones_6", "image_exact", "x_rounded",
)  # fmt: skip
_UNARY = ("Tanh", "Sigmoid", "Relu", "Neg", "Identity")


@dataclass
class Builder:
    """A graph that grows; `draw` is hypothesis's."""

    draw: st.DrawFn
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    # Whether a Reshape's sizes are an initializer, a Constant node, or an initializer that is an input too.
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def name(self, stem: str) -> str:
        """A new name, now and then one of ours."""
        free = [name for name in OUR_NAMES if name not in self.names]
        name = self.draw(st.sampled_from(free)) if free and self.draw(st.integers(0, 4)) == 0 else stem
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def add(self, op_type: str, inputs: list[str], stem: str = "h", **attributes: object) -> str:
        output = self.name(stem)
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def constant(self, values: np.ndarray, stem: str = "c") -> str:
        form = self.draw(st.sampled_from(("weight", "weight", "weight", "node", "input")))
        name = self.name(stem)
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        if form == "node":
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            return name
        self.weights.append(tensor)
        if form == "input":
            self.inputs.append(helper.make_tensor_value_info(name, tensor.data_type, list(values.shape)))
        return name

    def sizes(self, *sizes: int) -> str:
        return self.constant(np.array(sizes, dtype=np.int64))

    def numbers(self, *shape: int) -> str:
        seed = self.draw(st.integers(0, 99))
        return self.constant(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def _time_value(b: Builder, t: str) -> str:
    """Something of t as [N, C, 1, 1] or [N, 1, 1, 1]; sometimes it mixes the samples."""
    row = b.add("Mul", [t, b.constant(np.array(0.1, np.float32))])
    for _ in range(b.draw(st.integers(0, 2))):
        kind = b.draw(st.sampled_from(("sin", "mean", "sum", "size", "table", "shape", "branch")))
        if kind == "sin":
            row = b.add("Sin", [row])
        elif kind == "mean":
            row = b.add("Sub", [row, b.add("ReduceMean", [row], keepdims=1)])
        elif kind == "sum":
            row = b.add("CumSum", [row, b.constant(np.array(0, np.int64))])
        elif kind == "size":  # one number below a batch of so many, another above
            size = b.add("Cast", [b.add("Size", [t])], to=TensorProto.FLOAT)
            few = b.add("Less", [size, b.constant(np.array(b.draw(st.sampled_from((2.0, 4.0, 100.0))), np.float32))])
            row = b.add("Add", [row, b.add("Cast", [few], to=TensorProto.FLOAT)])
        elif kind == "table":
            places = b.add("Cast", [t], to=TensorProto.INT64)
            row = b.add("Add", [row, b.add("Gather", [b.numbers(NUM_TIMESTEPS), places])])
        elif kind == "shape":
            row = b.add("Mul", [row, b.add("Expand", [b.numbers(1), b.add("Shape", [t])])])
        else:
            row = _branch(b, row)
    if b.draw(st.booleans()):
        column = b.add("Unsqueeze", [row, b.sizes(1)])
        row = b.add("MatMul", [column, b.numbers(1, C)])
        target = b.draw(st.sampled_from(((-1, C, 1, 1), (0, C, 1, 1), (0, -1, 1, 1))))
        return b.add("Reshape", [row, b.sizes(*target)])
    target = b.draw(st.sampled_from(((-1, 1, 1, 1), (0, 1, 1, 1))))
    return b.add("Reshape", [row, b.sizes(*target)])


def _branch(b: Builder, value: str) -> str:
    """value, doubled in a subgraph whose inner names are anybody's."""
    condition = b.constant(np.array(b.draw(st.booleans())), "p")
    output = b.name("h")

    def body(op_type: str) -> onnx.GraphProto:
        inner, last = (b.name(stem) for stem in ("inner", "last"))
        nodes = [helper.make_node("Neg", [value], [inner]), helper.make_node(op_type, [inner, value], [last])]
        return helper.make_graph(nodes, "body", [], [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)])

    b.nodes.append(helper.make_node("If", [condition], [output], then_branch=body("Sub"), else_branch=body("Mul")))
    return output


def _image_value(b: Builder, image: str, times: list[str], images: list[str]) -> str:
    """The image [N, C, H, W], changed: by channel, by timestep, across samples, or by size and back."""
    kind = b.draw(
        st.sampled_from(("unary", "channel", "time", "image", "folded", "norm", "twice", "rows", "branch", "batch"))
    )
    if kind == "unary":
        return b.add(b.draw(st.sampled_from(_UNARY)), [image], "image")
    if kind == "channel":
        shape = b.draw(st.sampled_from(((C, 1, 1), (1, C, 1, 1), (1,), (H, W), (W,), (1, 1, 1), (C, 1, W))))
        return b.add(b.draw(st.sampled_from(("Add", "Mul"))), [image, b.numbers(*shape)], "image")
    if kind == "time":
        return b.add(b.draw(st.sampled_from(("Add", "Mul"))), [image, b.draw(st.sampled_from(times))], "image")
    if kind == "image":
        return b.add("Add", [image, b.draw(st.sampled_from(images))], "image")
    if kind == "branch":
        return _branch(b, image)
    if kind == "batch":
        mean = b.add("ReduceMean", [image, b.sizes(0)], keepdims=1)
        return b.add("Sub", [image, mean])
    if kind == "rows":
        flat = b.add("Reshape", [image, b.sizes(*b.draw(st.sampled_from(((0, C, -1), (-1, C * H * W), (0, -1)))))])
        return b.add("Reshape", [flat, b.sizes(*_image_sizes(b))], "image", **_allow_zero(b))
    if kind == "twice":
        scales = b.constant(np.array([1, 1, 2, 2], np.float32))
        ways = b.draw(st.sampled_from((("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))))
        large = b.add("Resize", [image, "", scales], mode="nearest",
                      coordinate_transformation_mode=ways[0], nearest_mode=ways[1])  # fmt: skip
        kernel = b.draw(st.sampled_from([w.name for w in b.weights if list(w.dims) == [C, C, 3, 3]] + [""]))
        kernel = kernel or b.numbers(C, C, 3, 3)
        if b.draw(st.booleans()):
            large = _branch(b, large)
        h = b.add("Conv", [large, kernel], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
        return b.add("AveragePool", [h], kernel_shape=[2, 2], strides=[2, 2])
    if kind == "folded":  # samples side by side in one axis, or in the batch
        target = b.draw(st.sampled_from(((1, -1, H * W), (-1, 2, H * W), (-1, C, W), (2, -1, W))))
        folded = b.add("Reshape", [image, b.sizes(*target)])
        mean = b.add("ReduceMean", [folded, b.sizes(b.draw(st.sampled_from((0, 1, 2))))], keepdims=1)
        return b.add("Reshape", [b.add("Sub", [folded, mean]), b.sizes(-1, C, H, W)], "image", **_allow_zero(b))
    groups = b.draw(st.sampled_from((2, 4)))
    target = b.draw(st.sampled_from(((0, groups, -1), (-1, groups, C // groups * H * W), (1, groups, -1))))
    one, zero = (b.constant(np.full(groups, value, np.float32)) for value in (1, 0))
    flat = b.add("InstanceNormalization", [b.add("Reshape", [image, b.sizes(*target)]), one, zero], epsilon=1e-3)
    scaled = b.add("Mul", [b.add("Reshape", [flat, b.sizes(-1, C, H, W)], "image"), b.numbers(C, 1, 1)])
    return b.add("Add", [scaled, b.numbers(C, 1, 1)])


def _image_sizes(b: Builder) -> tuple[int, ...]:
    return b.draw(st.sampled_from(((-1, C, H, W), (-1, C, W, H))))


def _allow_zero(b: Builder) -> dict[str, int]:
    return b.draw(st.sampled_from(({}, {"allowzero": 0}, {"allowzero": 1})))


@st.composite
def random_networks(draw: st.DrawFn) -> onnx.ModelProto:
    """A network x [N, C, H, W], t [N] → [N, C, H, W] by names that are anybody's."""
    b = Builder(draw)
    x, t = (b.name(stem) for stem in ("sample", "timestep"))
    times = [_time_value(b, t) for _ in range(draw(st.integers(1, 3)))]
    image, images = x, [x]
    for _ in range(draw(st.integers(1, 6))):
        image = _image_value(b, image, times, images)
        # Images may have been turned: bring them back before they meet.
        image = b.add("Reshape", [image, b.sizes(-1, C, H, W)], "image") if draw(st.booleans()) else image
        images = [*images, image]
    image = b.add("Reshape", [image, b.sizes(-1, C, H, W)], "image")
    last = b.add("Add", [image, times[0]], "noise")
    graph = helper.make_graph(
        b.nodes,
        "network",
        [
            helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", C, H, W]),
            helper.make_tensor_value_info(t, TensorProto.FLOAT, ["N"]),
            *b.inputs,
        ],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", C, H, W])],
        b.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def feeds(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples and timesteps that all differ."""
    rng = np.random.default_rng(batch)
    return rng.standard_normal((batch, C, H, W)).astype(np.float32), rng.permutation(NUM_TIMESTEPS)[:batch]


def run(model: onnx.ModelProto, batches: Sequence[int]) -> list[np.ndarray]:
    """The predictions of ONNX Runtime for `feeds`; whatever it raises, where it does not run the network."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    predictions = []
    for x, t in map(feeds, batches):
        feed = {}
        for entry in session.get_inputs():
            value = x if len(entry.shape) == 4 else t
            feed[entry.name] = value.astype(np.int64 if entry.type == "tensor(int64)" else np.float32)
        predictions.append(session.run(None, feed)[0])
    return predictions
