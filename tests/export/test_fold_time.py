"""Folding: what becomes a table, that nothing else changes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import METADATA_KEY, Process, SampleShape
from export import ExportRequest, export_onnx
from export import fold_time as module
from export.fold_time import fold_time
from tests.checkpoints import save_tiny_checkpoint
from tests.gaussian import GaussianNetwork

NUM_TIMESTEPS = 40
CHW = (1, 4, 4)


def parsed(body: str, t_type: str = "float", initializers: str = "") -> onnx.ModelProto:
    """A network from its nodes in ONNX's text form."""
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
    network (float[N, 1, 4, 4] x, {t_type}[N] t) => (float[N, 1, 4, 4] prediction)
    <int64[4] column = {{-1, 1, 1, 1}}, float slope = {{0.01}} {initializers}> {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    return model


def predict(model: onnx.ModelProto, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (entry,) = [entry for entry in session.get_inputs() if entry.name == "t"]
    dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[entry.type]
    prediction: np.ndarray = session.run(None, {"x": x, "t": t.astype(dtype)})[0]
    return prediction


def check_same(model: onnx.ModelProto, folded: onnx.ModelProto, chw: tuple[int, ...] = CHW, last: int = 40) -> None:
    """Both networks agree at every timestep, in batches of one and of many."""
    timesteps = np.random.default_rng(1).permutation(last)
    x = np.random.default_rng(0).standard_normal((last, *chw)).astype(np.float32)
    for part in (timesteps[:1], timesteps[1:3], timesteps):
        expected, found = (predict(network, x[: len(part)], part) for network in (model, folded))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
    assert {entry.name: entry.type.tensor_type.elem_type for entry in folded.graph.input} == {
        "x": TensorProto.FLOAT,
        "t": TensorProto.INT64,
    }


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    folder = tmp_path_factory.mktemp("exported")
    save_tiny_checkpoint(folder / "checkpoint", num_train_timesteps=NUM_TIMESTEPS)
    export_onnx(ExportRequest(folder / "unet.onnx", folder / "checkpoint"))
    return onnx.load(folder / "unet.onnx")


def test_an_exported_network(exported: onnx.ModelProto) -> None:
    before = exported.SerializeToString(deterministic=True)
    folded, folding = fold_time(exported, NUM_TIMESTEPS)
    assert exported.SerializeToString(deterministic=True) == before
    check_same(exported, folded, (1, 8, 8))
    # One lookup per residual block, of its channels: two blocks down, two in the middle, four up.
    assert folding.num_gathers == folding.num_tables == ops(folded).count("Gather") == 8
    assert folding.table_bytes == 4 * NUM_TIMESTEPS * (8 + 16 + 2 * 16 + 2 * 16 + 2 * 8)
    assert (folding.num_nodes_before, folding.num_nodes_after) == (len(exported.graph.node), len(folded.graph.node))
    assert {"Sin", "Cos"} <= set(ops(exported))
    assert not {"Sin", "Cos", "Gemm"} & set(ops(folded))
    assert {entry.key: entry.value for entry in folded.metadata_props} == {
        entry.key: entry.value for entry in exported.metadata_props
    }
    tables = [entry for entry in folded.graph.initializer if entry.name.startswith("time_table")]
    assert {entry.data_type for entry in tables} == {TensorProto.FLOAT}
    assert {entry.dims[0] for entry in tables} == {NUM_TIMESTEPS}
    read = {name for node in folded.graph.node for name in node.input}
    assert {entry.name for entry in folded.graph.initializer} <= read


@pytest.mark.parametrize("variance_type", ["fixed_large", "learned_range"])
def test_a_network_that_looks_numbers_up_itself(tmp_path: Path, variance_type: str) -> None:
    process = Process(SampleShape(*CHW), NoiseSchedule.make("linear", NUM_TIMESTEPS), variance_type=variance_type)
    model = onnx.load(GaussianNetwork(process, 0.2, 0.5).save_onnx(tmp_path / "unet.onnx"))
    folded, folding = fold_time(model, NUM_TIMESTEPS)
    check_same(model, folded)
    assert (folding.num_gathers, folding.table_bytes) == (2, 2 * 4 * NUM_TIMESTEPS)
    assert Process.from_json_text(folded.metadata_props[0].value) == process
    assert folded.metadata_props[0].key == METADATA_KEY


def test_t_used_as_it_is() -> None:
    model = parsed("level = Mul(t, slope) levels = Reshape(level, column) h = Reshape(t, column) "
                   "g = Mul(x, levels) prediction = Add(g, h)")  # fmt: skip
    check_same(model, fold_time(model, NUM_TIMESTEPS)[0])
    # A vector over the batch that x is multiplied with by its last axis is no per-sample use; t itself is a table.
    model = parsed("a = Transpose<perm=[1,2,3,0]>(x) b = Mul(a, t) prediction = Transpose<perm=[3,0,1,2]>(b)")
    folded, folding = fold_time(model, NUM_TIMESTEPS)
    check_same(model, folded)
    assert (folding.num_gathers, folding.num_nodes_after) == (1, 4)
    assert folded.graph.node[0].output[0] == "t_value"


def test_whole_numbers_stay_whole() -> None:
    model = parsed(
        "i = Cast<to=7>(t) e = Gather(table, i) j = Mod(i, two) h = Reshape(e, column) k = Reshape(j, column) "
        "y = Where(odd, x, x) m = Cast<to=1>(k) a = Add(y, h) prediction = Mul(a, m)",
        initializers=f", float[40] table = {{{','.join(map(str, range(40)))}}}, int64 two = {{2}}, bool odd = {{1}}",
    )
    check_same(model, fold_time(model, NUM_TIMESTEPS)[0])
    model = parsed("h = Cast<to=1>(t) g = Reshape(h, column) prediction = Add(x, g)", t_type="int64")
    check_same(model, fold_time(model, NUM_TIMESTEPS)[0])


def test_the_batch_size_read_off_x_is_no_dependence_on_x() -> None:
    # As diffusers broadcasts a timestep over the batch.
    body = (
        "shape = Shape<start=0, end=1>(x) ones = Expand(one, shape) s = Mul(t, ones) e = Mul(s, slope) "
        "h = Reshape(e, column) prediction = Mul(x, h)"
    )
    model = parsed(body, initializers=", float one = {1.0}")
    folded, folding = fold_time(model, NUM_TIMESTEPS)
    check_same(model, folded)
    assert ops(folded) == ["Gather", "Mul"]
    # And off t, which remains an input.
    model = parsed("n = Shape(t) z = ConstantOfShape(n) c = Reshape(z, column) prediction = Add(x, c)")
    folded, folding = fold_time(model, NUM_TIMESTEPS)
    check_same(model, folded)
    assert folding.num_gathers == 0


def test_a_branch_reads_from_outside() -> None:
    branch = "() => (float[N,1,1,1] {0}) {{ {0} = {1}(h, h) }}"
    model = parsed(
        "e = Mul(t, slope) h = Reshape(e, column) m = ReduceMax<keepdims=0>(x) p = Greater(m, zero) "
        f"s = If(p) <then_branch = a {branch.format('u', 'Mul')}, else_branch = b {branch.format('v', 'Add')}> "
        "prediction = Add(x, s)",
        initializers=", float zero = {0.0}",
    )
    folded, folding = fold_time(model, NUM_TIMESTEPS)
    check_same(model, folded)
    assert folding.num_gathers == 1


def test_equal_tables_are_shared() -> None:
    model = parsed("a = Mul(t, slope) b = Mul(slope, t) c = Reshape(a, column) d = Reshape(b, column) "
                   "y = Mul(x, c) prediction = Add(y, d)")  # fmt: skip
    folded, folding = fold_time(model, NUM_TIMESTEPS)
    check_same(model, folded)
    assert (folding.num_gathers, folding.num_tables) == (1, 1)


def test_a_broadcast_over_pixels_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parsed("e = Mul(t, slope) h = Reshape(e, column) s = Shape(x) b = Expand(h, s) c = Mul(b, b) "
                   "prediction = Add(x, c)")  # fmt: skip
    folded, folding = fold_time(model, NUM_TIMESTEPS)
    assert folding.table_bytes == 4 * NUM_TIMESTEPS * 16
    check_same(model, folded)
    monkeypatch.setattr(module, "MAX_TABLE_BYTES", 4 * NUM_TIMESTEPS)
    folded, folding = fold_time(model, NUM_TIMESTEPS)
    assert folding.table_bytes == 4 * NUM_TIMESTEPS
    assert ops(folded) == ["Gather", "Shape", "Expand", "Mul", "Add"]
    check_same(model, folded)


def test_a_prediction_of_t_alone_keeps_its_name() -> None:
    model = parsed("h = Reshape(t, column) z = Expand(h, s) prediction = Mul(z, slope)",
                   initializers=", int64[4] s = {1, 1, 4, 4}")  # fmt: skip
    folded, _ = fold_time(model, NUM_TIMESTEPS)
    check_same(model, folded)
    assert ops(folded) == ["Gather"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("m = ReduceMean<keepdims=0>(t) d = Sub(t, m) h = Reshape(d, column) prediction = Add(x, h)", "other timestep"),
        ("m = CumSum(t, axis) h = Reshape(m, column) prediction = Add(x, h)", "other timesteps of a batch"),
        ("n = RandomNormalLike(t) h = Reshape(n, column) prediction = Add(x, h)", "other timesteps of a batch"),
        ("m = ReduceMax<keepdims=1>(t) prediction = Add(x, m)", r"shape \(1,\) for \d+ timesteps"),
        ("l = Log(t) h = Reshape(l, column) prediction = Add(x, h)", "h is not finite at timestep 0"),
    ],
    ids=["mean", "sum", "random", "maximum", "logarithm"],
)
def test_what_is_no_function_of_each_timestep_is_refused(body: str, message: str) -> None:
    model = parsed(body, initializers=", int64 axis = {0}")
    with pytest.raises(InputError, match=rf"unet.onnx: .*{message}"):
        fold_time(model, NUM_TIMESTEPS, "unet.onnx")


@pytest.mark.parametrize(
    ("body", "lookups"),
    [
        # Fewer than four samples of a batch see something else, which no batch that is evaluated shows.
        (
            "n = Size(t) few = Less(n, four) f = Cast<to=1>(few) s = Mul(t, slope) e = Add(s, f) "
            "h = Reshape(e, column) prediction = Add(x, h)",
            1,
        ),
        (
            "s = Sin(t) p = If(yes) <then_branch = a () => (float[N] u) { u = Neg(s) }, "
            "else_branch = b () => (float[N] v) { v = Abs(s) }> h = Reshape(p, column) prediction = Add(x, h)",
            1,
        ),
        # How many numbers are not 0 depends on x.
        (
            "z = NonZero(x) n = Size(z) f = Cast<to=1>(n) s = Sin(t) e = Mul(s, f) h = Reshape(e, column) "
            "prediction = Add(x, h)",
            1,
        ),
    ],
    ids=["size", "branch", "nonzero"],
)
def test_what_is_not_proven_stays_in_the_graph(body: str, lookups: int) -> None:
    model = parsed(body, initializers=", int64 four = {4}, bool yes = {1}")
    folded, folding = fold_time(model, NUM_TIMESTEPS)
    assert folding.num_gathers == lookups
    for batch in (1, 2, 3, 5, 40):
        x = np.random.default_rng(batch).standard_normal((batch, *CHW)).astype(np.float32)
        x[0, 0, 0] = 0.0
        t = np.arange(batch)[::-1]
        np.testing.assert_allclose(predict(folded, x, t), predict(model, x, t), rtol=0, atol=1e-5)


def test_a_table_that_is_shorter_than_the_schedule() -> None:
    model = parsed("i = Cast<to=7>(t) e = Gather(table, i) h = Reshape(e, column) prediction = Add(x, h)",
                   initializers=f", float[30] table = {{{','.join(map(str, range(30)))}}}")  # fmt: skip
    with pytest.raises(InputError, match="fails for 40 timesteps from 0 to 39 .*check --num-train-timesteps"):
        fold_time(model, NUM_TIMESTEPS, "unet.onnx")


def test_tables_that_do_not_fit_beside_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parsed("h = Reshape(t, column) prediction = Add(x, h)")
    weights = sum(entry.ByteSize() for entry in model.graph.initializer)
    monkeypatch.setattr(module, "MAX_ONNX_BYTES", weights + 4 * NUM_TIMESTEPS)
    fold_time(model, NUM_TIMESTEPS)
    monkeypatch.setattr(module, "MAX_ONNX_BYTES", weights + 4 * NUM_TIMESTEPS - 1)
    with pytest.raises(InputError, match="GB of weights and tables, expected at most .*; give --no-fold-time"):
        fold_time(model, NUM_TIMESTEPS)


def test_names_that_are_taken() -> None:
    model = parsed("time_table = Mul(t, slope) h = Reshape(time_table, column) t_value = Add(x, h) "
                   "g = Reshape(t, column) prediction = Mul(t_value, g)")  # fmt: skip
    check_same(model, fold_time(model, NUM_TIMESTEPS)[0])


def test_inputs_are_checked() -> None:
    model = parsed("h = Reshape(t, column) prediction = Add(x, h)")
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(InputError, match="t has 2 values, expected an open first axis"):
        fold_time(model, NUM_TIMESTEPS)
    model.graph.input.append(onnx.helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]))
    with pytest.raises(InputError, match=r"inputs are x \(rank 4\), t \(rank 1\), label \(rank 1\); expected"):
        fold_time(model, NUM_TIMESTEPS)
