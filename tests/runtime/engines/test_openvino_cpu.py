"""OpenVINO: engines and ONNX files, what is bound, what is refused before it is opened."""

import gc
import hashlib
import json
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.engines import openvino_cpu
from runtime.engines.opening import open_engine
from runtime.engines.openvino_cpu import OpenVinoEngine
from runtime.formats.digest import sealed_text
from runtime.formats.openvino_description import OpenVinoDescription
from runtime.formats.sidecar import read_sidecar, sidecar_path
from runtime.process_flags import ProcessFlags
from runtime.sample import main
from runtime.sampler import Sampler
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.openvino_files import save_engine

ROOT = Path(__file__).parents[3]
PROCESS = Process(SampleShape(2, 4, 6), NoiseSchedule.make("linear", 100), variance_type="fixed_large")
NETWORK = GaussianNetwork(PROCESS, 0.2, 0.5)
HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture
def engine_path(tmp_path):
    return save_engine(tmp_path / "unet.xml", NETWORK)


def check_prediction(engine, num=3):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num, 2, 4, 6)).astype(np.float32)
    t = np.array([0, 57, 99], np.float32)[:num].copy()
    prediction = np.full_like(x, np.nan)
    call = engine.bind(x, t, prediction)
    for _ in range(2):
        call()
        np.testing.assert_allclose(prediction, NETWORK(x, t), rtol=1e-5, atol=1e-6)
        x += 1  # the buffers themselves are read, at every call
        t[:] = t[::-1].copy()


@pytest.mark.parametrize("folded", [True, False])
def test_an_engine_runs_in_its_buffers_at_any_batch(tmp_path, folded):
    engine = OpenVinoEngine(save_engine(tmp_path / "unet.xml", NETWORK, folded=folded), threads=1)
    assert engine.process == PROCESS
    assert engine.precision == "fp32"
    assert engine.name.startswith("OpenVINO 20")
    for num in (3, 1, 3):
        check_prediction(engine, num)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.DOUBLE])
def test_an_onnx_file_under_any_names(tmp_path, kind):
    model = onnx.load(NETWORK.save_onnx(tmp_path / "unet.onnx"))
    model.graph.input[1].type.tensor_type.elem_type = kind
    swapped = [onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in reversed(model.graph.input)]
    del model.graph.input[:]
    model.graph.input.extend(swapped)
    for entry in (*model.graph.input, *model.graph.output):
        entry.name = f"odd_{entry.name}"
    for node in model.graph.node:
        node.input[:] = [f"odd_{name}" if name in ("x", "t") else name for name in node.input]
        node.output[:] = [f"odd_{name}" if name == "prediction" else name for name in node.output]
    onnx.save(model, tmp_path / "unet.onnx")
    engine = open_engine(tmp_path / "unet.onnx", threads=1, backend="openvino")
    assert isinstance(engine, OpenVinoEngine)
    assert engine.process == PROCESS
    check_prediction(engine)


def test_flags_describe_what_a_foreign_file_does_not(tmp_path):
    path = NETWORK.save_onnx(tmp_path / "unet.onnx", with_metadata=False)
    flags = ProcessFlags("linear", None, None, 100, "epsilon", "fixed_large", 1.0)
    assert OpenVinoEngine(path, flags=flags).process == PROCESS
    with pytest.raises(InputError, match="`beta_schedule`, `prediction_type`, `variance_type`, `clip_sample` is not"):
        OpenVinoEngine(path)


def test_a_static_batch_takes_only_itself(tmp_path):
    model = onnx.load(NETWORK.save_onnx(tmp_path / "unet.onnx"))
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, tmp_path / "unet.onnx")
    engine = OpenVinoEngine(tmp_path / "unet.onnx", threads=1)
    check_prediction(engine)
    with pytest.raises(InputError, match="takes batches of 3, found 1; give `batch_size=3`"):
        check_prediction(engine, 1)


def test_precision_is_never_left_to_openvino(engine_path):
    engine = OpenVinoEngine(engine_path, threads=1)
    for precision, hint in openvino_cpu.PRECISION_HINTS.items():
        engine.precision = precision
        if precision == "bf16" and not HAS_BF16:
            continue
        compiled = engine.compiled(2)
        assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == hint
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
        assert compiled.get_property("NUM_STREAMS") == 1
    engine.precision = "fp32"
    with pytest.raises(DeviceUnavailableError, match="asked for f32, OpenVINO runs it in"):
        engine.compiled(2, {"INFERENCE_PRECISION_HINT": "dynamic"})


def test_the_second_start_takes_the_compiled_model_and_gives_the_same_bits(engine_path):
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 6)).astype(np.float32)
    predictions = []
    for _ in range(2):
        engine = OpenVinoEngine(engine_path, threads=1)
        prediction = np.zeros_like(x)
        engine.bind(x, np.array([3, 70], np.float32), prediction)()
        predictions.append(prediction)
        loaded = engine.compiled(2).get_property("LOADED_FROM_CACHE")
    assert loaded
    np.testing.assert_array_equal(*predictions)


@pytest.mark.parametrize("onnx_file", [True, False])
def test_a_flipped_bit_in_the_compiled_model_changes_nothing(tmp_path, monkeypatch, onnx_file):
    """OpenVINO runs what lies in its cache: a bit of a weight there moved the prediction."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = NETWORK.save_onnx(tmp_path / "unet.onnx") if onnx_file else save_engine(tmp_path / "unet.xml", NETWORK)
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 6)).astype(np.float32)

    def predict():
        engine = OpenVinoEngine(path, threads=1)
        prediction = np.zeros_like(x)
        engine.bind(x, np.array([3, 70], np.float32), prediction)()
        return prediction

    expected = predict()
    blobs = list((tmp_path / "cache").rglob("*.blob"))
    assert len(blobs) == 1
    size = blobs[0].stat().st_size
    table = NETWORK.slope.astype(np.float32).tobytes()
    places = [blobs[0].read_bytes().find(table) + 4 * 70 + 3] if table in blobs[0].read_bytes() else []
    for place in [*places, *range(0, size, size // 7)]:
        content = bytearray(blobs[0].read_bytes())
        content[place] ^= 0x40
        blobs[0].chmod(0o600)
        blobs[0].write_bytes(content)
        np.testing.assert_array_equal(predict(), expected)
        (blobs[0],) = (tmp_path / "cache").rglob("*.blob")


def replace_in(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(sealed_text(json.loads(text.replace(old, new))))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: sidecar_path(path).unlink(), r"unet\.xml\.json: no such file; expected the description of unet"),
        (lambda path: path.unlink(), r"unet\.xml: no such file; copy"),
        (lambda path: path.with_suffix(".bin").unlink(), r"unet\.bin: no such file; copy"),
        (lambda path: path.write_bytes(path.read_bytes() + b" "), r"unet\.xml: SHA-256 is \w{64}, but its sidecar"),
        (lambda path: path.with_suffix(".bin").write_bytes(b"junk"), r"unet\.bin: SHA-256 is \w{64}, but its sidecar"),
        (
            lambda path: replace_in(sidecar_path(path), '"format": 2,\n "sha', '"format": 1,\n "sha'),
            "this version reads 2",
        ),
        (lambda path: replace_in(sidecar_path(path), '"passed": true', '"passed": false'), "verification.passed is F"),
        (
            lambda path: replace_in(sidecar_path(path), '"openvino"', '"tensorrt"'),
            "flavor is 'tensorrt', expected openvino",
        ),
        (lambda path: replace_in(sidecar_path(path), '"fp32"', '"int4"'), "precision is 'int4', expected fp32 or bf16"),
        (lambda path: replace_in(sidecar_path(path), '"width": 6', '"width": 7'), r"expected \[N, 2, 4, 7\]"),
    ],
)
def test_what_does_not_fit_together_is_refused(engine_path, spoil, says, monkeypatch):
    spoil(engine_path)
    opened = []
    read_model = ov.Core.read_model
    monkeypatch.setattr(ov.Core, "read_model", lambda *arguments: opened.append(1) or read_model(*arguments))
    with pytest.raises(InputError, match=says) as caught:
        OpenVinoEngine(engine_path)
    assert "\n" not in str(caught.value)
    assert "export" in str(caught.value)
    assert bool(opened) == ("expected [N" in str(caught.value))


def test_bf16_needs_its_instructions(tmp_path, monkeypatch):
    path = save_engine(tmp_path / "unet.xml", NETWORK, precision="bf16")
    get_property = ov.Core.get_property

    def without_bf16(core, device, name):
        return ["FP32", "INT8"] if name == "OPTIMIZATION_CAPABILITIES" else get_property(core, device, name)

    monkeypatch.setattr(ov.Core, "get_property", without_bf16)
    with pytest.raises(DeviceUnavailableError, match=r"needs bf16 instructions .* has none; use an fp32 engine here"):
        OpenVinoEngine(path)


@pytest.mark.skipif(not HAS_BF16, reason="needs a CPU with bf16 instructions")
def test_a_bf16_engine_refuses_tables_that_amplify_its_rounding(tmp_path):
    path = save_engine(tmp_path / "unet.xml", NETWORK, precision="bf16")
    unclipped = ProcessFlags(clip_sample="none")
    cosine = Process(PROCESS.sample, NoiseSchedule.make("squaredcos_cap_v2", 100))
    fragile = save_engine(tmp_path / "cosine.xml", GaussianNetwork(cosine, 0.2, 0.5), precision="bf16")
    assert Sampler(path, num_steps=5).engine.precision == "bf16"
    with pytest.raises(InputError, match=r"rounding the prediction to bf16 moves a step by up to .*--force"):
        Sampler(fragile, num_steps=5, flags=unclipped)
    assert len(Sampler(fragile, num_steps=5, flags=unclipped, force=True).table) == 5
    same = save_engine(tmp_path / "exact.xml", GaussianNetwork(cosine, 0.2, 0.5))
    assert len(Sampler(same, num_steps=5, flags=unclipped).table) == 5


def test_a_gpu_is_refused(engine_path):
    with pytest.raises(InputError, match="runs on the CPU, but `device` is cuda"):
        open_engine(engine_path, device="cuda")
    with pytest.raises(InputError, match="`backend=onnxruntime` is for an ONNX file"):
        open_engine(engine_path, backend="onnxruntime")


def test_junk_is_no_onnx_file(tmp_path):
    path = tmp_path / "junk.onnx"
    for content, says in ((b"\x08\x07junk" * 9, "cannot be read"), (b"", "OpenVINO cannot read it")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"junk\.onnx: {says} as an ONNX model") as caught:
            OpenVinoEngine(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file; make one with"):
        OpenVinoEngine(tmp_path / "none.onnx")


def test_the_command_samples_from_it(engine_path):
    command = [sys.executable, "-m", "runtime.sample", "--engine", "unet.xml", "--num", "3", "--steps", "5", "--json"]
    done = subprocess.run(
        [*command, "--format", "npy"],
        cwd=engine_path.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert re.fullmatch(r"OpenVINO [\d.]+ \(fp32, CPU\)", report["engine"]["name"])
    sidecar = read_sidecar(engine_path, OpenVinoDescription)
    both = f"{sidecar.sha256} {sidecar.engine.weights_sha256}"
    assert report["engine"]["sha256"] == hashlib.sha256(both.encode()).hexdigest()
    found = np.load(engine_path.parent / "samples" / "samples.npy")
    onnx_file = NETWORK.save_onnx(engine_path.parent / "unet.onnx")
    expected = Sampler(onnx_file, num_steps=5, backend="onnxruntime").sample_float32(3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        ("auto", r"^unet\.onnx: (OpenVINO|ONNX Runtime) .* because "),
        ("openvino", r"^unet\.onnx: OpenVINO [\d.]+ \(fp32, CPU\), ddpm"),
        ("onnxruntime", r"^unet\.onnx: ONNX Runtime [\d.]+ \(CPU\), ddpm"),
    ],
)
def test_the_choice_is_printed(tmp_path, monkeypatch, capsys, backend, says):
    monkeypatch.chdir(tmp_path)
    NETWORK.save_onnx(tmp_path / "unet.onnx")
    assert main(["--num", "1", "--steps", "2", "--format", "npy", "--backend", backend]) == 0
    assert re.search(says, capsys.readouterr().err, re.MULTILINE)


def test_a_bound_call_keeps_its_buffers_alive(engine_path):
    """It reads and writes at their addresses: freed memory would be written to if it did not."""
    x, t = np.ones((2, 2, 4, 6), np.float32), np.zeros(2, np.float32)
    prediction = np.zeros_like(x)
    buffers = [weakref.ref(array) for array in (x, t, prediction)]
    call = OpenVinoEngine(engine_path, threads=1).bind(x, t, prediction)
    del x, t, prediction
    gc.collect()
    assert all(buffer() is not None for buffer in buffers)
    del call
    gc.collect()
    assert all(buffer() is None for buffer in buffers)


def test_few_sizes_are_compiled_and_fewer_kept(engine_path, monkeypatch):
    compiled = []
    compile_size = OpenVinoEngine.compiled

    def counted(engine, batch_size, options=None):
        compiled.append(batch_size)
        return compile_size(engine, batch_size, options)

    monkeypatch.setattr(OpenVinoEngine, "compiled", counted)
    sampler = Sampler(engine_path, num_steps=2, threads=2)
    expected = Sampler(engine_path, num_steps=2, batch_size=1).sample_float32(30)
    compiled.clear()
    threads = len(os.listdir("/proc/self/task"))
    for num in range(1, 31):
        np.testing.assert_array_equal(sampler.sample_float32(num), expected[:num])
    assert compiled == [*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32]
    assert len(sampler.engine._compiled) == openvino_cpu.MAX_COMPILED
    assert len(os.listdir("/proc/self/task")) - threads <= 2 * (openvino_cpu.MAX_COMPILED + 1)
    # What was used last is kept.
    compiled.clear()
    for num in (30, 28, 31, 22, 23):
        sampler.sample(num)
    assert compiled == []


def test_a_full_batch_is_compiled_as_it_is_and_the_last_one_filled_up(engine_path, monkeypatch):
    sampler = Sampler(engine_path, num_steps=2, batch_size=9, threads=1)
    expected = Sampler(engine_path, num_steps=2, batch_size=1, threads=1).sample_float32(20)
    np.testing.assert_array_equal(sampler.sample_float32(20), expected)  # 9, 9 and 2
    np.testing.assert_array_equal(sampler.sample_float32(9), expected[:9])
    assert set(sampler.engine._compiled) == {2, 9}


@pytest.mark.parametrize("field", ["precision", "flavor", "weights_sha256"])
@pytest.mark.parametrize("value", [None, [], {}, 1, True, "int4"], ids=repr)
def test_an_edited_description_of_the_engine_is_refused(tmp_path, field, value):
    path = save_engine(tmp_path / "unet.xml", NETWORK)
    place = path.with_name("unet.xml.json")
    sidecar = json.loads(place.read_text())
    sidecar["engine"][field] = value
    place.write_text(sealed_text(sidecar))
    with pytest.raises(InputError, match=rf"engine: {field} .*make it again with"):
        Sampler(path)
