"""What inputs and outputs a file from elsewhere may have: it works with either backend, or one line says what helps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.engines.network_contract import GUIDE
from runtime.engines.onnx_device import OnnxDeviceEngine
from runtime.engines.opening import open_engine
from runtime.engines.verification import predict_with
from runtime.process_flags import ProcessFlags
from runtime.sample import main
from runtime.sampler import Sampler
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.shared_device import kernels, memory

__all__ = ["kernels", "memory"]  # fixtures

ROOT = Path(__file__).parents[3]
PROCESS = Process(SampleShape(2, 4, 6), NoiseSchedule.make("linear", 100), variance_type="fixed_large")
NETWORK = GaussianNetwork(PROCESS, 0.2, 0.5)
FLAGS = ProcessFlags("linear", None, None, 100, "epsilon", "fixed_large", 1.0)
BACKENDS = ["onnxruntime", "openvino"]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 2, 4, 6)).astype(np.float32)

Change = Callable[[ModelProto], None]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A file without metadata, changed as somebody else would have made it."""

    def make(*changes: Change, network: GaussianNetwork = NETWORK) -> Path:
        path = network.save_onnx(tmp_path / "foreign.onnx", with_metadata=False)
        model = onnx.load(path)
        for change in changes:
            change(model)
        onnx.save(model, path)
        return path

    return make


def reads_t(*dims: int | str, nodes: tuple[onnx.NodeProto, ...] = ()) -> Change:
    """t of another shape; nodes make `t_N` [N] or [1] of it."""

    def change(model: ModelProto) -> None:
        graph = model.graph
        graph.input[1].CopyFrom(helper.make_tensor_value_info("t", TensorProto.FLOAT, dims))
        for node in graph.node:
            node.input[:] = ["t_N" if name == "t" else name for name in node.input]
        for node in reversed(nodes):
            graph.node.insert(0, node)
        graph.initializer.append(helper.make_tensor("flat", TensorProto.INT64, [1], [-1]))

    return change


FLATTEN = helper.make_node("Reshape", ["t", "flat"], ["t_N"])
SAME = helper.make_node("Identity", ["t"], ["t_N"])
SCALARS = {"scalar": reads_t(nodes=(FLATTEN,)), "vector of 1": reads_t(1, nodes=(SAME,))}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", SCALARS)
def test_one_timestep_for_the_batch(backend: str, kind: str, make: Make) -> None:
    engine = open_engine(make(SCALARS[kind]), threads=1, flags=FLAGS, backend=backend)
    found, t = np.zeros_like(X), np.full(3, 57, np.float32)
    call = engine.bind(X, t, found)
    call()
    np.testing.assert_allclose(found, NETWORK(X, t), rtol=1e-5, atol=1e-6)
    t[1] = 3
    with pytest.raises(InputError, match="takes one timestep for the whole batch.*docs/foreign-onnx.md"):
        call()
    # Where a gate gives different timesteps, each part of the batch is called by itself.
    t = np.array([57, 57, 3], np.float32)
    np.testing.assert_allclose(predict_with(engine)(X, t), NETWORK(X, t), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_column_of_timesteps(backend: str, make: Make) -> None:
    engine = open_engine(make(reads_t("N", 1, nodes=(FLATTEN,))), threads=1, flags=FLAGS, backend=backend)
    found, t = np.zeros_like(X), np.array([57, 3, 99], np.float32)
    call = engine.bind(X, t, found)
    for _ in range(2):
        call()
        np.testing.assert_allclose(found, NETWORK(X, t), rtol=1e-5, atol=1e-6)
        t[:] = [99, 0, 1]


def test_the_images_are_those_of_the_ordinary_file(make: Make) -> None:
    expected = Sampler(make(), num_steps=5, flags=FLAGS, backend="onnxruntime").sample(3)
    for change in (*SCALARS.values(), reads_t("N", 1, nodes=(FLATTEN,))):
        for backend in BACKENDS:
            found = Sampler(make(change), num_steps=5, flags=FLAGS, backend=backend).sample(3)
            assert np.abs(found.astype(int) - expected).max() <= 1


def test_on_a_gpu_a_column_works_and_a_scalar_is_refused(make: Make, memory: object) -> None:
    path = make(reads_t("N", 1, nodes=(FLATTEN,)))
    engine = OnnxDeviceEngine(path, FLAGS, memory=memory, device="cpu")
    found, t = np.zeros_like(X), np.array([57, 3, 99], np.float32)
    engine.bind(X, t, found)()
    np.testing.assert_allclose(found, NETWORK(X, t), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="takes one timestep for the whole batch .*`device=cpu`"):
        OnnxDeviceEngine(make(SCALARS["scalar"]), FLAGS, memory=memory, device="cpu")


def fixed_batch(input_place: int, size: int) -> Change:
    def change(model: ModelProto) -> None:
        model.graph.input[input_place].type.tensor_type.shape.dim[0].dim_value = size

    return change


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_that_only_t_fixes(backend: str, make: Make) -> None:
    engine = open_engine(make(fixed_batch(1, 3)), threads=1, flags=FLAGS, backend=backend)
    assert engine.batch_range() == (3, 3)
    with pytest.raises(InputError, match="takes batches of 3, found 2; give `batch_size=3`"):
        engine.bind(X[:2].copy(), np.zeros(2, np.float32), np.zeros_like(X[:2]))


def open_sizes(*places: int) -> Change:
    def change(model: ModelProto) -> None:
        for entry in (model.graph.input[0], model.graph.output[0]):
            for place in places:
                entry.type.tensor_type.shape.dim[place].Clear()

    return change


@pytest.mark.parametrize("backend", BACKENDS)
def test_open_sizes_are_given_by_flags(backend: str, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(open_sizes(2, 3))
    flags = ["--beta-schedule", "linear", "--num-train-timesteps", "100", "--prediction-type", "epsilon"]
    flags += ["--variance-type", "fixed_large", "--clip-sample", "1", "--backend", backend]
    arguments = ["--engine", str(path), "--num", "2", "--steps", "3", "--out", str(path.parent / "out"), *flags]
    assert main(arguments) == 2
    assert "give those that are open with --channels, --height and --width" in capsys.readouterr().err
    assert main([*arguments, "--height", "4", "--width", "6", "--format", "npy"]) == 0
    found = np.load(path.parent / "out" / "samples.npy")
    expected = Sampler(make(), num_steps=3, flags=FLAGS, backend="onnxruntime").sample_float32(2)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"height": 5}, r"`height` is 5, but input x has the shape \[2, 4, 6\]"),
        ({"channels": 6}, r"`channels` is 6, but input x has the shape \[2, 4, 6\]"),
    ],
)
def test_sizes_may_not_contradict_the_file(flags: dict[str, int], says: str, make: Make, tmp_path: Path) -> None:
    for backend in BACKENDS:
        with pytest.raises(InputError, match=says):
            open_engine(make(), flags=with_flags(**flags), backend=backend)
    described = NETWORK.save_onnx(tmp_path / "ours.onnx")
    with pytest.raises(InputError, match="was trained with .*; leave it out"):
        open_engine(described, flags=ProcessFlags(**flags))


def with_flags(**more: int | str) -> ProcessFlags:
    return ProcessFlags(**vars(FLAGS) | more)


def second_output(model: ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("product", TensorProto.FLOAT, ["N", 2, 4, 6]))


def other_first(model: ModelProto) -> None:
    second_output(model)
    first, second = (onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend([second, first])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", [second_output, other_first])
def test_the_prediction_among_several_outputs_is_named(backend: str, change: Change, make: Make) -> None:
    path = make(change)
    with pytest.raises(InputError, match="outputs are .*product.*; say which it is with `output_name`"):
        open_engine(path, flags=FLAGS, backend=backend)
    with pytest.raises(InputError, match="and `output_name` is other"):
        open_engine(path, flags=with_flags(output_name="other"), backend=backend)
    engine = open_engine(path, threads=1, flags=with_flags(output_name="prediction"), backend=backend)
    found, t = np.zeros_like(X), np.array([57, 3, 99], np.float32)
    engine.bind(X, t, found)()
    np.testing.assert_allclose(found, NETWORK(X, t), rtol=1e-5, atol=1e-6)


def test_an_output_of_what_is_no_onnx_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`output_name` is for an ONNX file"):
        open_engine(tmp_path, flags=ProcessFlags(output_name="prediction"))


def class_label(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("class_labels", TensorProto.INT64, ["N"]))


def hidden_states(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("encoder_hidden_states", TensorProto.FLOAT, ["N", 77, 8]))


def half_ends(model: ModelProto) -> None:
    for entry in (model.graph.input[0], model.graph.output[0]):
        entry.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in model.graph.node:
        node.input[:] = ["x_32" if name == "x" else name for name in node.input]
        node.output[:] = ["prediction_32" if name == "prediction" else name for name in node.output]
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["x_32"], to=TensorProto.FLOAT))
    model.graph.node.append(helper.make_node("Cast", ["prediction_32"], ["prediction"], to=TensorProto.FLOAT16))


@pytest.mark.parametrize("change", [class_label, hidden_states, half_ends, reads_t("N", 2, nodes=(FLATTEN,))])
def test_what_is_refused_says_where_the_way_out_is(change: Change, make: Make) -> None:
    with pytest.raises(InputError, match=re.escape(GUIDE)) as refused:
        open_engine(make(change), flags=FLAGS)
    assert "\n" not in str(refused.value)
    assert (ROOT / GUIDE).is_file()


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_are_listed_as_inputs(backend: str, make: Make) -> None:
    """As files of IR version 3 have them all."""

    def change(model: ModelProto) -> None:
        for table in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(table.name, table.data_type, table.dims))

    engine = open_engine(make(change), threads=1, flags=FLAGS, backend=backend)
    found, t = np.zeros_like(X), np.array([57, 3, 99], np.float32)
    engine.bind(X, t, found)()
    np.testing.assert_allclose(found, NETWORK(X, t), rtol=1e-5, atol=1e-6)


def brings_into_order(model: ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["x_first" if name == "x" else name for name in node.input]
        node.output[:] = ["prediction_first" if name == "prediction" else name for name in node.output]
    model.graph.node.insert(0, helper.make_node("Transpose", ["x_same"], ["x_first"], perm=[0, 3, 1, 2]))
    model.graph.node.insert(0, helper.make_node("Identity", ["x"], ["x_same"]))
    model.graph.node.append(helper.make_node("Transpose", ["prediction_first"], ["prediction"], perm=[0, 2, 3, 1]))


@pytest.mark.parametrize(
    ("shape", "changes", "says"),
    [
        ((8, 8, 3), (), "its channels are last"),
        ((32, 16, 1), (), "its channels are last"),
        ((5, 8, 4), (), "its channels are last"),
        ((16, 16, 16), (brings_into_order,), "its channels are last"),
        ((4, 8, 16), (brings_into_order,), "its channels are last"),
        ((3, 3, 3), (), "its channels may be first or last"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_last_are_recognized(
    backend: str, shape: tuple[int, int, int], changes: tuple[Change, ...], says: str, make: Make
) -> None:
    process = Process(SampleShape(*shape), PROCESS.schedule, variance_type="fixed_large")
    path = make(*changes, network=GaussianNetwork(process, 0.2, 0.5))
    with pytest.raises(InputError, match=f"{says}, expected .*docs/foreign-onnx.md.*give {shape[0]} for `channels`"):
        open_engine(path, flags=FLAGS, backend=backend)
    assert open_engine(path, flags=with_flags(channels=shape[0]), backend=backend).process.sample.chw == shape


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 32, 32), (1, 1, 1), (16, 8, 8), (4, 4, 4), (2, 1, 1), (1, 4, 3)])
def test_channels_first_are_let_alone(shape: tuple[int, int, int], make: Make) -> None:
    process = Process(SampleShape(*shape), PROCESS.schedule, variance_type="fixed_large")
    network = GaussianNetwork(process, 0.2, 0.5)
    flags = with_flags(channels=4) if shape == (4, 4, 4) else FLAGS
    assert open_engine(make(network=network), flags=flags).process.sample.chw == shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("body", ["p = Concat<axis=0>(x, x)", "q = NonZero(x) r = Shape(q) p = Expand(x, r)"])
def test_a_prediction_of_another_shape(backend: str, body: str, tmp_path: Path) -> None:
    """Which the file leaves open, and OpenVINO may know only when it has run."""
    head = '<ir_version: 9, opset_import: ["": 18]> g (float[N,2,4,6] x, float[N] t) => (float[a,b,c,d] p)'
    onnx.save(onnx.parser.parse_model(f"{head} {{ {body} }}"), tmp_path / "foreign.onnx")

    def run() -> None:
        engine = open_engine(tmp_path / "foreign.onnx", threads=1, flags=FLAGS, backend=backend)
        engine.bind(X, np.zeros(3, np.float32), np.zeros_like(X))()

    with pytest.raises(InputError) as refused:
        run()
    assert "\n" not in str(refused.value)
