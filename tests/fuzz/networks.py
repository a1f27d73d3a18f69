"""Random ε-networks as anybody's exporter may have written them, and ONNX Runtime's word on what they compute."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import strategies as st
from onnx import TensorProto, helper

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import METADATA_KEY, Process, SampleShape
from diffusion.reference_loop import initial_noise, reference_loop
from diffusion.samplers import make_table
from tests.fuzz import arithmetic_blocks, control_blocks, layout_blocks, window_blocks
from tests.fuzz.network_builder import Builder

SPACING = "trailing"
_T_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.DOUBLE)
_NUMPY = {
    "float": np.float32, "double": np.float64, "float16": np.float16, "int64": np.int64, "int32": np.int32
}  # fmt: skip
_NAMES = ("x", "t", "sample", "timestep", "images/in:0", "time_tables", "prediction", "ünïcode", "a b", "N", "y" * 300)
# How a file differs from the contract where it meets the outside; None, mostly: not at all.
_ENDS = (None,) * 15 + ("scalar t", "t [N, 1]", "half x", "open H W", "extra output", "first output", "label", "nhwc")
_OPSETS = (9, 11, 12, 13, 14, 15, 16, 17, 17, 18, 18, 19, 20, 21, 22, 23)


@dataclass(frozen=True)
class Network:
    """A file and what it says.

    Attributes:
        model: the graph.
        process: what its metadata or its flags say.
        described: whether the process stands in its metadata.
        steps: of the chain.
        baked_batch: the batch that the file declares, if it does.
        external: the size in bytes from which its weights lie in a file beside it; None for all in one.
        mixes: whether samples of a batch see each other.
        ends: what is unusual about its inputs and outputs.
    """

    model: onnx.ModelProto
    process: Process
    described: bool
    steps: int
    baked_batch: int | None
    external: int | None
    mixes: bool
    ends: str | None

    def __repr__(self) -> str:
        story = f"{self.steps} steps, external={self.external}, ends={self.ends}"
        return f"Network({story})\n{onnx.printer.to_text(self.model)}"

    @property
    def flags(self) -> list[str]:
        """What the command line must say of the process."""
        if self.described:
            return []
        schedule = self.process.schedule
        return [
            "--beta-schedule", schedule.kind, "--num-train-timesteps", str(schedule.num_train_timesteps),
            "--beta-start", str(schedule.beta_start), "--beta-end", str(schedule.beta_end),
            "--prediction-type", self.process.prediction_type, "--variance-type", self.process.variance_type,
            "--clip-sample", "none" if self.process.clip_sample is None else str(self.process.clip_sample),
        ]  # fmt: skip

    def save(self, path: Path) -> None:
        """Write the file."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        onnx.save(model, str(path), save_as_external_data=self.external, location=f"{path.name}.data", size_threshold=0)

    def reference(self, path: Path, num: int) -> tuple[np.ndarray, np.ndarray] | None:
        """x_0 of `num` samples by ONNX Runtime, each sample alone, and what is uncertain about it.

        Returns:
            float64 [num, C, H, W] twice: x_0, and how far it moves if every prediction is off by 1e-6; None where
            ONNX Runtime does not run the file.
        """
        if self.ends == "label":
            return None
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        try:
            try:
                session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except Exception:  # some shapes are only found by the optimizer
                options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
                session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            x = next(entry for entry in session.get_inputs() if len(entry.shape) == 4)
            t = next(entry for entry in session.get_inputs() if entry.name != x.name)
            x_type, t_type = (_NUMPY[entry.type[7:-1]] for entry in (x, t))
            entries = {0: (), 1: (-1,), 2: (-1, 1)}[len(t.shape)]
            output = session.get_outputs()[1 if self.ends == "first output" else 0].name
            copies = self.baked_batch or 1

            def predict(state: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
                rows = []
                for sample, timestep in zip(state, timesteps, strict=True):
                    images = np.stack([sample.astype(x_type)] * copies)
                    if self.ends == "nhwc":
                        images = images.transpose(0, 2, 3, 1)
                    times = np.full(copies, timestep, t_type)
                    feed = {x.name: images, t.name: times.reshape(entries) if entries else times[0]}
                    row = session.run([output], feed)[0][:1].astype(np.float32)
                    rows.append(row.transpose(0, 3, 1, 2) if self.ends == "nhwc" else row)
                return np.concatenate(rows)

            table = make_table(self.process, "ddpm", self.steps, SPACING)
            noise = initial_noise((num, *self.process.sample.chw), 0, 0)
            x_0 = reference_loop(table, predict, noise)
            moved = reference_loop(table, lambda s, u: predict(s * (1 + 1e-6), u) * (1 + 1e-6), noise)
        except Exception:  # ONNX Runtime's exceptions have no common base
            return None
        return x_0, np.abs(moved - x_0)


@st.composite
def networks(draw: Any, blocks: int = 3) -> Network:
    """A network of a few blocks, in any opset, that says of itself whatever files say."""
    b = Builder(draw, draw(st.sampled_from(_OPSETS)))
    shape = (b.pick((1, 2, 3, 4)), b.pick((3, 4, 6, 8)), b.pick((4, 5, 8)))
    if b.number(0, 9) == 7:
        shape = (3, 32, 32)
    num_train_timesteps = b.pick((6, 20, 1000))
    x_name, t_name = draw(st.lists(st.sampled_from(_NAMES), min_size=2, max_size=2, unique=True))
    out_name = b.pick([name for name in ("prediction", "out", "x_0", "time_rows") if name not in (x_name, t_name)])
    b.taken = {x_name, t_name, out_name}
    t_type = b.pick(_T_TYPES)
    baked = b.pick((None, None, None, None, None, None, None, 1, 4))
    learned = b.number(0, 5) == 3

    ends = b.pick(_ENDS)
    if ends == "nhwc":  # of few channels and many pixels: where both could be either, nobody can tell
        shape = (b.pick((1, 3)), 8, 8)
    y, t_inner = _beginning(b, ends, x_name, t_name)
    x_inner = y
    every = layout_blocks.BLOCKS + arithmetic_blocks.BLOCKS + window_blocks.BLOCKS + control_blocks.BLOCKS
    for _ in range(b.number(1, blocks)):
        y = b.pick(every)(b, y, shape)
        if b.flip():
            y = b.one("Tanh", y)
    mixes = b.number(0, 24) == 17
    if mixes:
        y = _mixed(b, y)
    before_time = y
    y = _with_time(b, y, t_inner, t_type, shape, num_train_timesteps)
    if b.flip():
        y = b.one("Add", b.one("Tanh", y), b.one("Mul", x_inner, b.constant(0.5)))
    if learned:
        y = b.one("Concat", y, b.one("Tanh", y), axis=1)
    b.nodes.append(_end(ends, y, out_name))

    process = Process(
        SampleShape(*shape),
        NoiseSchedule.make(
            "linear", num_train_timesteps, *((1e-4, 0.02) if num_train_timesteps == 1000 else (0.02, 0.5))
        ),
        b.pick(("epsilon", "epsilon", "sample", "v_prediction")),
        "learned_range" if learned else b.pick(("fixed_small", "fixed_large")),
        b.pick((1.0, 1.0, None)),
    )
    channels = 2 * shape[0] if learned else shape[0]
    model = _model(b, (x_name, t_name, t_type), out_name, shape, baked, channels, ends, before_time)
    described = b.flip()
    if described:
        helper.set_model_props(model, {METADATA_KEY: json.dumps(process.to_json())})
    external = b.pick((None, None, None, None, None, 0, 64))
    return Network(model, process, described, min(4, num_train_timesteps), baked, external, mixes, ends)


def _beginning(b: Builder, ends: str | None, x: str, t: str) -> tuple[str, str]:
    """x as float32 [N, C, H, W] and t as [N], from what the file's inputs are."""
    match ends:
        case "half x":
            return b.one("Cast", x, to=TensorProto.FLOAT), t
        case "nhwc":
            return b.one("Transpose", x, perm=[0, 3, 1, 2]), t
        case "t [N, 1]":
            return x, b.reshape(t, [-1])
        case "scalar t":
            n = b.one("Gather", b.one("Shape", x), b.ints(0), axis=0)
            return x, b.one("Expand", b.reshape(t, [1]), n)
        case _:
            return x, t


def _end(ends: str | None, y: str, out: str) -> onnx.NodeProto:
    if ends == "half x":
        return helper.make_node("Cast", [y], [out], to=TensorProto.FLOAT16)
    if ends == "nhwc":
        return helper.make_node("Transpose", [y], [out], perm=[0, 2, 3, 1])
    return helper.make_node("Identity", [y], [out])


def _with_time(b: Builder, y: str, t: str, t_type: int, shape: tuple[int, int, int], num_train_timesteps: int) -> str:
    c, _h, _w = shape
    value = t if t_type == TensorProto.FLOAT else b.one("Cast", t, to=TensorProto.FLOAT)
    match b.number(0, 4):
        case 0:  # a number for each sample
            u = b.one("Mul", value, b.constant(1 / num_train_timesteps))
            u = b.unsqueeze(u, [1, 2, 3]) if b.flip() else b.reshape(u, [-1, 1, 1, 1])
        case 1:  # an embedding and a layer
            frequencies = b.constant(np.exp(-np.arange(4.0)))
            angles = b.one("Mul", b.unsqueeze(value, [1]), b.unsqueeze(frequencies, [0]))
            u = b.one("Concat", b.one("Sin", angles), b.one("Cos", angles), axis=1)
            u = b.one("Gemm", u, b.weights(8, c), b.weights(c))
            u = b.unsqueeze(b.one("Mul", u, b.one("Sigmoid", u)), [2, 3])
        case 2:  # a table
            rows = b.one("Gather", b.weights(num_train_timesteps, c), b.one("Cast", t, to=TensorProto.INT64), axis=0)
            u = b.reshape(rows, b.pick([[-1, c, 1, 1], [0, c, 1, 1], [0, -1, 1, 1]]))
        case 3:  # broadcast over the image
            u = b.one("Mul", b.reshape(value, [-1, 1, 1, 1]), b.constant(1 / num_train_timesteps))
            u = b.one("Expand", u, b.one("Shape", y))
        case _:  # behind a transpose
            u = b.one("Tanh", b.one("Mul", b.reshape(value, [1, -1]), b.constant(0.01)))
            u = b.unsqueeze(b.one("Transpose", u, perm=[1, 0]), [2, 3])
    return b.one(b.pick(("Add", "Mul", "Sub")), *b.pick([(y, u), (u, y)]))


def _mixed(b: Builder, y: str) -> str:
    """Let the samples of a batch see each other."""
    match b.number(0, 3):
        case 0:
            return b.one("Sub", y, b.reduce("ReduceMean", y, [0]))
        case 1:
            return b.one("Softmax", y, axis=0)
        case 2:
            return b.one("CumSum", y, b.constant(0, np.int64))
        case _:
            return b.one("Sub", y, b.reduce("ReduceMax", y, [0, 1, 2, 3]))


def _model(
    b: Builder,
    named: tuple[str, str, int],
    out: str,
    shape: tuple[int, int, int],
    baked: int | None,
    channels: int,
    ends: str | None,
    inner: str,
) -> onnx.ModelProto:
    x, t, t_type = named
    kind = TensorProto.FLOAT16 if ends == "half x" else TensorProto.FLOAT
    batch: int | str | None = baked or b.pick(("N", "N", "batch", None))
    other = batch if baked or b.flip() else b.pick(("M", None, "N"))
    chw, predicted = list(shape), [channels, *shape[1:]]
    if ends == "open H W":
        chw[1:] = ["H", "W"]
    if ends == "nhwc":
        chw, predicted = [*shape[1:], shape[0]], [*shape[1:], channels]
    times = {"scalar t": [], "t [N, 1]": [other, 1]}.get(str(ends), [other])
    inputs = [helper.make_tensor_value_info(x, kind, [batch, *chw]), helper.make_tensor_value_info(t, t_type, times)]
    if b.flip():
        inputs.reverse()
    if ends == "label":
        inputs.append(helper.make_tensor_value_info("class_labels", TensorProto.INT64, [batch]))
    sizes = b.pick([[batch, *predicted], [batch, *predicted], [None] * 4, ["a", "b", "c", "d"]])
    outputs = [helper.make_tensor_value_info(out, kind, sizes)]
    if ends in ("extra output", "first output") and inner not in (x, t):
        outputs.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, None))
        if ends == "first output":
            outputs.reverse()
    graph = helper.make_graph(b.nodes, b.pick(("g", "", "main graph")), [*inputs, *b.inputs], outputs, b.initializers)
    opsets = [helper.make_opsetid("", b.opset), *(helper.make_opsetid(*item) for item in b.domains.items())]
    ir_version = 11 if b.opset >= 23 else 10 if b.opset >= 21 else 9 if b.opset >= 19 else 8
    model = helper.make_model(graph, opset_imports=opsets, functions=b.functions, ir_version=ir_version)
    if b.flip():
        try:
            inferred = onnx.shape_inference.infer_shapes(model)
        except onnx.shape_inference.InferenceError:
            return model
        model.graph.value_info.extend(inferred.graph.value_info)
    return model
