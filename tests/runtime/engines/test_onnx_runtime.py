"""ONNX files as they come: ours, and those of others."""

import gc
import weakref

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.engines.onnx_runtime import OnnxRuntimeEngine
from runtime.process_flags import ProcessFlags
from tests.gaussian import GaussianNetwork

PROCESS = Process(SampleShape(2, 4, 6), NoiseSchedule.make("linear", 100), variance_type="fixed_large")
NETWORK = GaussianNetwork(PROCESS, 0.2, 0.5)


@pytest.fixture
def model(tmp_path):
    return onnx.load(NETWORK.save_onnx(tmp_path / "original.onnx"))


def opened(tmp_path, model, **arguments) -> OnnxRuntimeEngine:
    path = tmp_path / "unet.onnx"
    onnx.save(model, path)
    return OnnxRuntimeEngine(path, threads=1, **arguments)


def check_prediction(engine: OnnxRuntimeEngine, num: int = 3) -> None:
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


def test_a_file_by_the_contract(tmp_path, model):
    engine = opened(tmp_path, model)
    assert engine.process == PROCESS
    assert len(engine.sha256) == 64
    assert engine.name.startswith("ONNX Runtime")
    check_prediction(engine)


def test_inputs_are_told_apart_by_rank_not_by_name_or_order(tmp_path, model):
    first, second = model.graph.input[0], model.graph.input[1]
    swapped = [onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in (second, first)]
    del model.graph.input[:]
    model.graph.input.extend(swapped)
    for entry in (*model.graph.input, *model.graph.output):
        entry.name = f"odd_{entry.name}"
    for node in model.graph.node:
        node.input[:] = [f"odd_{name}" if name in ("x", "t") else name for name in node.input]
        node.output[:] = [f"odd_{name}" if name == "prediction" else name for name in node.output]
    check_prediction(opened(tmp_path, model))


@pytest.mark.parametrize("element_type", [TensorProto.INT64, TensorProto.INT32, TensorProto.DOUBLE])
def test_t_may_have_another_type(tmp_path, model, element_type):
    model.graph.input[1].type.tensor_type.elem_type = element_type
    check_prediction(opened(tmp_path, model))


def test_a_static_batch_takes_only_itself(tmp_path, model):
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.shape.dim[0].dim_value = 3
    engine = opened(tmp_path, model)
    check_prediction(engine)
    with pytest.raises(InputError, match="takes batches of 3, found 1; give `batch_size=3`"):
        check_prediction(engine, 1)


def without_metadata(model):
    del model.metadata_props[:]
    return model


FLAGS = ProcessFlags("linear", None, None, 100, "epsilon", "fixed_large", 1.0)


def test_flags_describe_what_a_foreign_file_does_not(tmp_path, model):
    assert opened(tmp_path, without_metadata(model), flags=FLAGS).process == PROCESS
    with pytest.raises(InputError, match="`beta_schedule`, `prediction_type`, `variance_type`, `clip_sample` is not"):
        opened(tmp_path, model)


def test_flags_may_choose_variance_and_clip_but_not_contradict(tmp_path, model):
    process = opened(tmp_path, model, flags=ProcessFlags(variance_type="fixed_small", clip_sample="none")).process
    assert (process.variance_type, process.clip_sample) == ("fixed_small", None)
    for flags in (
        ProcessFlags(prediction_type="sample"),
        ProcessFlags(beta_end=0.5),
        ProcessFlags(num_train_timesteps=1000),
    ):
        with pytest.raises(InputError, match="was trained with .*; leave it out"):
            opened(tmp_path, model, flags=flags)


def rename_dims(model):
    for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]:
        dim.ClearField("dim_value")
        dim.dim_param = "any"
    return without_metadata(model)


def add_input(model):
    model.graph.input.append(helper.make_tensor_value_info("class", TensorProto.INT64, ["N"]))
    return model


def wrong_type(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in model.graph.node:
        if node.op_type == "Mul":
            node.input[0] = "x32"
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["x32"], to=TensorProto.FLOAT))
    return model


def second_output(model):
    model.graph.output.append(helper.make_tensor_value_info("product", TensorProto.FLOAT, ["N", 2, 4, 6]))
    return model


def future_format(model):
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"format": 1', '"format": 3')
    return model


def other_shape(model):
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"width": 6', '"width": 7')
    return model


def learned(model):
    model.metadata_props[0].value = model.metadata_props[0].value.replace("fixed_large", "learned_range")
    return model


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (rename_dims, "has the open shape"),
        (add_input, "inputs are .*class.*expected one of rank 4"),
        (wrong_type, r"input x is tensor\(float16\), expected tensor\(float\)"),
        (second_output, "outputs are .* expected one float32 prediction"),
        (future_format, "process format is 3, this version reads 1 and 2"),
        (other_shape, r"input x is \['N', 2, 4, 6\], expected \[N, 2, 4, 7\]"),
        (learned, r"output prediction is \['N', 2, 4, 6\], expected \[N, 4, 4, 6\]"),
    ],
)
def test_what_is_no_epsilon_network_is_refused(tmp_path, model, change, says):
    with pytest.raises(InputError, match=says) as caught:
        opened(tmp_path, change(model), flags=FLAGS if change is rename_dims else None)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path, model):
    path = tmp_path / "unet.onnx"
    path.write_bytes(model.SerializeToString()[:-200])
    with pytest.raises(InputError, match="cannot be read as an ONNX model"):
        OnnxRuntimeEngine(path)
    path.write_bytes(b"")  # a message without a field
    with pytest.raises(InputError, match="ONNX Runtime cannot read it as an ONNX model"):
        OnnxRuntimeEngine(path)


def test_a_bound_call_keeps_its_buffers_alive(tmp_path, model):
    """It writes to their addresses: freed memory would be written to if it did not."""
    x, t = np.ones((2, 2, 4, 6), np.float32), np.zeros(2, np.float32)
    prediction = np.zeros_like(x)
    buffers = [weakref.ref(array) for array in (x, t, prediction)]
    call = opened(tmp_path, model).bind(x, t, prediction)
    del x, t, prediction
    gc.collect()
    assert all(buffer() is not None for buffer in buffers)
    del call
    gc.collect()
    assert all(buffer() is None for buffer in buffers)
