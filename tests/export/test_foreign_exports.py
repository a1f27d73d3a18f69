"""Files as others have them, by the commands: an engine right for every sample, or one line with the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from commands.errors import EXIT_INPUT
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export import to_openvino, to_trt
from export.fold_time import fold_time
from export.foreign_network import prepare
from export.low_precision import lower_precision
from export.network_io import with_contract_names
from export.plan_verification import verify_network
from runtime.engines.openvino_cpu import OpenVinoEngine
from runtime.engines.trajectories import make_golden
from runtime.engines.verification import Predict, predict_with

SHAPE = (3, 8, 8)
FLAGS = ["--beta-schedule", "linear", "--prediction-type", "epsilon", "--variance-type", "fixed_large"]
FLAGS += ["--clip-sample", "1", "--num-train-timesteps", "50"]
TIME = "u = Mul(t, s) v = Unsqueeze(u, behind) w = Sub(x, v) "
LOOP = """p = Loop(twice, yes, w) <body = b (int64 i, bool go, float[N,3,8,8] prediction)
    => (bool on, float[N,3,8,8] x_float32) { on = Identity(go) x_float32 = Tanh(prediction) }>"""
BRANCH = """m = ReduceMax<keepdims=0>(x) q = Greater(m, s)
    p = If(q) <then_branch = a () => (float[N,3,8,8] time_table) { time_table = Tanh(w) },
               else_branch = b () => (float[N,3,8,8] prediction) { prediction = Neg(w) }>"""


def network(
    text: str, imports: str = "", io: str = "float[N,3,8,8] x, float[N] t", out: str = "float[N,3,8,8] p"
) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18{imports}]> network ({io}) => ({out})
        <int64[3] behind = {{1, 2, 3}}, float s = {{0.001}}, int64[4] image = {{-1, 3, 8, 8}}, int64 twice = {{2}},
         int64[3] folded = {{1, -1, 64}}, int64[1] last = {{2}}, int64[2] rows = {{-1, 192}}, bool yes = {{1}},
         int64[4] pair = {{2, 3, 64, 1}}> {{ {text} }}"""
    )


def reference(model: onnx.ModelProto) -> Predict:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x_name, t_name = (entry.name for entry in session.get_inputs())

    def predict(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        prediction: np.ndarray = session.run(None, {x_name: x, t_name: t.astype(np.float32)})[0]
        return prediction

    return predict


RIGHT = {
    "folded batch": TIME + "f = Reshape(x, folded) m = ReduceMean(f, last) c = Sub(f, m) i = Reshape(c, image) "
    "a = Tanh(i) r = Add(x, a) p = Sub(r, v)",
    "allowzero": TIME + "f = Reshape(w, rows) i = Reshape<allowzero=1>(f, image) a = Sigmoid(i) p = Mul(i, a)",
    "loop": TIME + LOOP,
    "branch": TIME + BRANCH,
    "neighbours": TIME + "z = ReduceMax<keepdims=1>(w) p = Mul(w, s)",
    "long names": (TIME + "wide = Neg(w) p = Tanh(wide)").replace("wide", "n" * 300),
}


@pytest.mark.parametrize("name", list(RIGHT))
def test_an_engine_is_right_for_every_sample(name: str, tmp_path: Path) -> None:
    model = network(RIGHT[name])
    onnx.save(model, tmp_path / "net.onnx")
    out = tmp_path / "net.xml"
    assert to_openvino.main(["--onnx", str(tmp_path / "net.onnx"), "--out", str(out), *FLAGS]) == 0
    predict, expected = predict_with(OpenVinoEngine(out)), reference(model)
    for batch in (1, 2, 5):
        x = np.random.default_rng(batch).standard_normal((batch, *SHAPE)).astype(np.float32)
        t = np.array([49, 0, 7, 30, 12], np.float32)[:batch]
        np.testing.assert_allclose(predict(x, t), expected(x, t), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("text", "ends", "flags"),
    [
        (
            "u = Mul(t, s) v = Unsqueeze(u, twos) p = Sub(x, v)",
            {"io": "float[N,3,8,8] x, float[M,1] t"},
            [],
        ),
        (TIME + "p = Tanh(w)", {"io": "float[N,3,H,H] x, float[N] t", "out": "float[N,3,H,H] p"},
         ["--height", "8", "--width", "8"]),
        (TIME + "p = Tanh(w) q = Neg(w)", {"out": "float[N,3,8,8] q, float[N,3,8,8] p"}, ["--output-name", "p"]),
    ],
    ids=["column", "open size", "outputs"],
)  # fmt: skip
def test_ends_that_are_brought_in_order(text: str, ends: dict[str, str], flags: list[str], tmp_path: Path) -> None:
    model = network(text, **ends)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3]), "twos"))
    onnx.save(model, tmp_path / "net.onnx")
    out = tmp_path / "net.xml"
    assert to_openvino.main(["--onnx", str(tmp_path / "net.onnx"), "--out", str(out), *FLAGS, *flags]) == 0
    predict, session = predict_with(OpenVinoEngine(out)), ort.InferenceSession(model.SerializeToString())
    x = np.random.default_rng(0).standard_normal((5, *SHAPE)).astype(np.float32)
    t = np.array([49, 0, 7, 30, 12], np.float32)
    fed = t[:, None] if "M,1" in str(ends) else t
    np.testing.assert_allclose(predict(x, t), session.run(["p"], {"x": x, "t": fed})[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["loop", "branch"])
def test_control_flow_in_low_precision(name: str, precision: str) -> None:
    model = network(RIGHT[name])
    process = Process(SampleShape(*SHAPE), NoiseSchedule.make("linear", 50))
    golden = make_golden(process, reference(model), precision)
    named = with_contract_names(prepare(model, "net.onnx"), "net.onnx")
    mixed = lower_precision(fold_time(named, 50)[0], precision, golden, "net.onnx")
    assert verify_network(mixed.model, golden, process, precision, "reference").passed


def refused(command: object, model: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    source, suffix = tmp_path / "net.onnx", ".xml" if command is to_openvino else ".plan"
    source.write_bytes(model.SerializeToString())
    more = [] if command is to_openvino else ["--flavor", "rtx"]
    code = command.main(["--onnx", str(source), "--out", str(tmp_path / f"net{suffix}"), *FLAGS, *more])  # type: ignore[attr-defined]
    *_, error = capsys.readouterr().err.splitlines()
    assert code == EXIT_INPUT, error
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    return str(error)


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        (
            TIME + "k = Reshape(w, pair) z = Tanh(k) p = Reshape(z, image)",
            {},
            "runs with a batch of 2 but not of 1 and 5",
        ),
        (TIME + "p = nobody.Strange(w)", {"imports": ', "nobody" : 1'}, "nobody:Strange"),
        (TIME + "p = Identity(w)", {"io": "float[4,3,8,8] x, float[N] t"}, "takes batches of 4 only"),
        ("u = Mul(t, s) p = Sub(x, u)", {"io": "float[N,3,8,8] x, float t"}, "one timestep for a whole batch"),
        ("u = Mul(t, s) p = Sub(x, u)", {"io": "float[N,3,8,8] x, float[1] t"}, "one timestep for a whole batch"),
        ("p = Neg(x)", {}, "the prediction is made from x alone"),
    ],
    ids=["baked", "operator", "fixed", "scalar", "one", "no time"],
)
def test_refusals(
    text: str, more: dict[str, str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(to_openvino, network(text, **more), tmp_path, capsys)


def test_an_operator_that_openvino_does_not_know_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network(TIME + "g = GlobalLpPool(w) p = Mul(w, g)")
    error = refused(to_openvino, model, tmp_path, capsys)
    assert "GlobalLpPool" in error
    assert "--backend onnxruntime" in error


@pytest.mark.parametrize("command", [to_openvino, to_trt])
def test_a_name_that_is_too_long(command: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suffix = ".xml" if command is to_openvino else ".plan"
    onnx.save(network(RIGHT["loop"]), tmp_path / "net.onnx")
    # The file itself could be written, the one with its reference predictions could not.
    for length in (300, 240):
        out = tmp_path / f"{'n' * (length - len(suffix))}{suffix}"
        assert command.main(["--onnx", str(tmp_path / "net.onnx"), "--out", str(out)]) == EXIT_INPUT  # type: ignore[attr-defined]
        assert "no file can have this name (File name too long)" in capsys.readouterr().err
    assert command.main(["--onnx", "n" * 300 + ".onnx", "--out", str(tmp_path / f"a{suffix}")]) == EXIT_INPUT  # type: ignore[attr-defined]
    assert "File name too long" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
