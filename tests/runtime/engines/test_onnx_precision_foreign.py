"""The precision of ONNX files that somebody else wrote: it is in their graphs alone."""

from __future__ import annotations

import contextlib
import itertools
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, helper

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.engines.onnx_precision import PRECISION_KEY
from runtime.engines.opening import open_engine
from runtime.process_flags import ProcessFlags
from runtime.sampler import Sampler
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.foreign_onnx import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    Change,
    calls_a_function,
    casts_at_the_end,
    computes,
    fills_a_tensor,
    has_a_constant,
    multiplies_whole_numbers,
    onnx_precision,
    quantizes_in_a_function,
    rounds_dynamically,
    rounds_in_a_branch,
    rounds_to_eight_bits,
    sixty_four_bits,
    stores_eight_bits,
    stores_weights,
    unread_branch,
    unread_function,
    unread_table,
)

PROCESS = Process(SampleShape(1, 8, 8), NoiseSchedule.make("squaredcos_cap_v2"))
SMALL = Process(SampleShape(1, 2, 2), NoiseSchedule.make("linear", 3))
LOW = {"fp16": FLOAT16, "bf16": BFLOAT16}
Foreign = Callable[..., Path]


@pytest.fixture
def foreign(tmp_path: Path) -> Foreign:
    """Make a file of the closed-form network, changed as somebody else would have."""

    def make(*changes: Change, process: Process = PROCESS) -> Path:
        path = GaussianNetwork(process, 0.0, 0.5).save_onnx(tmp_path / "foreign.onnx")
        model = onnx.load(path)
        for change in changes:
            change(model)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return path

    return make


IN_BOTH_TYPES = [computes, casts_at_the_end, stores_weights, has_a_constant, rounds_in_a_branch, calls_a_function]


@pytest.mark.parametrize(
    ("change", "precision"),
    [
        *itertools.product(IN_BOTH_TYPES, LOW),
        (fills_a_tensor, "fp16"),  # in bf16 it is of a later opset
    ],
)
def test_what_rounds_the_prediction_counts(
    change: Callable[[int], Change], precision: str, foreign: Foreign, tmp_path: Path
) -> None:
    path = foreign(change(LOW[precision]))
    assert onnx_precision(path) == precision
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=0)
    assert (tmp_path / "weights").stat().st_size > 1000
    assert onnx_precision(path) == precision


@pytest.mark.parametrize("change", [lambda model: None, unread_table, unread_branch, unread_function, sixty_four_bits])
def test_what_the_prediction_is_not_made_from_does_not_count(change: Change, foreign: Foreign) -> None:
    assert onnx_precision(foreign(change)) == "fp32"


QUANTIZED_FILES = [
    rounds_to_eight_bits(),
    rounds_to_eight_bits(written=False),
    rounds_to_eight_bits(onnx.TensorProto.UINT8),
    stores_eight_bits,
    rounds_dynamically,
    multiplies_whole_numbers,
    quantizes_in_a_function,
]


@pytest.mark.parametrize("change", QUANTIZED_FILES)
def test_quantized_files_are_of_low_precision(change: Change, foreign: Foreign) -> None:
    """They run where they mean what they say, and by the rule for low precision; OpenVINO gave other images."""
    path = foreign(change)
    assert onnx_precision(path) == "int8"
    arguments: dict[str, Any] = {"sampler": "ddim", "num_steps": 10, "threads": 1}
    with pytest.raises(InputError, match="rounding the prediction to int8 moves a step.*; --force"):
        Sampler(path, **arguments)
    sampler = Sampler(path, **arguments, force=True)
    assert sampler.engine.name.startswith("ONNX Runtime")
    assert sampler.engine.name.endswith("(int8, CPU)")
    assert sampler.sample(2).shape == (2, 8, 8, 1)
    with pytest.raises(InputError, match="is in int8, which OpenVINO does not run as it is"):
        open_engine(path, backend="openvino")


def test_a_quantizer_keeps_the_property_of_the_file_that_it_was_given(foreign: Foreign) -> None:
    def says(model: ModelProto) -> None:
        model.metadata_props.add(key=PRECISION_KEY, value="fp16")

    assert onnx_precision(foreign(says, rounds_dynamically)) == "int8"


@pytest.mark.parametrize("kind", [onnx.TensorProto.DataType.Name(n) for n in range(1, 27)])
def test_types_of_eight_bits_and_fewer(kind: str, tmp_path: Path) -> None:
    """By their names: the next type of onnx.proto with eight bits or fewer fails here until it is known."""
    number = onnx.TensorProto.DataType.Value(kind)
    path = tmp_path / "unet.onnx"
    path.write_bytes(one_node(helper.make_node("Cast", ["x"], ["p"], to=number)).SerializeToString())
    bits = int("".join(filter(str.isdigit, kind.partition("E")[0])) or 32)
    expected = "int8" if bits <= 8 else {"FLOAT16": "fp16", "BFLOAT16": "bf16"}.get(kind, "fp32")
    assert onnx_precision(path) == expected


@pytest.mark.parametrize(
    "operator",
    [
        "QLinearConv",
        "ConvInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "MatMulNBits",
        "MatMulBnb4",
        "QGemm",
    ],
)
def test_operators_that_quantize(operator: str, tmp_path: Path) -> None:
    path = tmp_path / "unet.onnx"
    path.write_bytes(one_node(helper.make_node(operator, ["x", "w"], ["p"], domain="any")).SerializeToString())
    assert onnx_precision(path) == "int8"


def sparse(low: int) -> onnx.SparseTensorProto:
    values, places = helper.make_tensor("w", low, [1], [1.0]), helper.make_tensor("", onnx.TensorProto.INT64, [1], [0])
    return helper.make_sparse_tensor(values, places, [4])


def one_node(node: NodeProto, inputs: int = FLOAT, outputs: int = FLOAT) -> ModelProto:
    """p made from x and w by a node."""
    x, p = helper.make_tensor_value_info("x", inputs, [4]), helper.make_tensor_value_info("p", outputs, [4])
    return helper.make_model(helper.make_graph([node], "g", [x], [p]))


@pytest.mark.parametrize("precision", LOW)
def test_every_place_that_holds_a_type(precision: str, tmp_path: Path) -> None:
    low, path = LOW[precision], tmp_path / "unet.onnx"
    add, dropped = helper.make_node("Add", ["x", "w"], ["p"]), helper.make_node("Dropout", ["x", "", "w"], ["p"])
    models = [
        one_node(helper.make_node("LayerNormalization", ["x", "w"], ["p"], stash_type=low)),
        one_node(helper.make_node("EyeLike", ["x"], ["p"], dtype=low)),
        one_node(helper.make_node("DequantizeLinear", ["x", "w"], ["p"], output_dtype=low)),
        one_node(helper.make_node("Constant", [], ["p"], sparse_value=sparse(low))),
        one_node(add, inputs=low),
        one_node(add, outputs=low),
        one_node(add),
    ]
    models[-1].graph.sparse_initializer.append(sparse(low))
    for model in models:
        path.write_bytes(model.SerializeToString())
        assert onnx_precision(path) == precision
    # The same numbers where they are no type, and where they are another value's that has no name either.
    models = [one_node(helper.make_node("Softmax", ["x"], ["p"], axis=low)), one_node(dropped), one_node(dropped)]
    models[1].graph.node.append(helper.make_node("Dropout", ["x"], ["y", ""], dtype=low))
    models[2].graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=models[0].graph, to=low))
    for model in models:
        path.write_bytes(model.SerializeToString())
        assert onnx_precision(path) == "fp32"


def test_the_coarser_precision_wins(foreign: Foreign) -> None:
    assert onnx_precision(foreign(stores_weights(FLOAT16), casts_at_the_end(BFLOAT16))) == "bf16"
    assert onnx_precision(foreign(computes(BFLOAT16), unread_table)) == "bf16"


def test_our_property_is_the_authority(foreign: Foreign) -> None:
    def says(precision: str) -> Change:
        return lambda model: helper.set_model_props(model, {PRECISION_KEY: precision})

    assert onnx_precision(foreign(computes(FLOAT16), says("bf16"))) == "bf16"
    assert onnx_precision(foreign(computes(BFLOAT16), says("fp16"))) == "fp16"
    with pytest.raises(InputError, match=r"ddpm-rt-precision is 'fp3+…', expected") as caught:
        onnx_precision(foreign(computes(FLOAT16), says("fp" + "3" * 10**6)))
    assert len(str(caught.value)) < 400


def test_a_graph_in_pieces_is_one_graph(foreign: Foreign) -> None:
    """Protocol Buffers merge what comes twice; the last of a tensor's types is the one it has."""
    path = foreign()
    content = path.read_bytes()
    more = ModelProto()
    more.graph.initializer.append(helper.make_tensor("slope", FLOAT16, [1], [1.0]))
    path.write_bytes(content + more.SerializeToString())
    assert onnx_precision(path) == "fp16"
    tensor = more.graph.initializer[0].SerializeToString() + b"\x10\x01"
    path.write_bytes(content + message(7, message(5, tensor)))
    assert onnx_precision(path) == "fp32"


def message(field: int, content: bytes) -> bytes:
    """A field with a length, written by hand."""
    size, encoded = len(content), bytearray([field << 3 | 2])
    while size >= 0x80:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(encoded) + bytes([size]) + content


def test_truncated_files_are_refused_or_left_to_their_reader(foreign: Foreign) -> None:
    path = foreign(rounds_in_a_branch(FLOAT16), process=SMALL)
    content = path.read_bytes()
    graph = onnx.load(path).graph.SerializeToString()
    first, whole = content.index(graph), content.index(graph) + len(graph)
    assert whole < len(content)
    for size in [*range(0, whole, 7), *range(whole - 50, len(content))]:
        path.write_bytes(content[:size])
        with contextlib.suppress(InputError):
            assert onnx_precision(path) == ("fp32" if size < first else "fp16")


@settings(max_examples=100)
@given(data=st.data())
def test_damaged_files_are_refused_or_left_to_their_reader(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    content = bytearray(GaussianNetwork(SMALL, 0.0, 0.5).save_onnx(path).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert onnx_precision(path) in ("fp32", "fp16", "bf16", "int8")


def test_hostile_files_take_neither_memory_nor_stack(tmp_path: Path) -> None:
    deep = b""
    for _ in range(2000):  # a graph in an attribute of a node of a graph
        deep = message(1, message(5, message(6, deep)))
    hole = message(7, b"")[:1] + b"\x86\x80\x80\x80\x07"  # a graph of 1.75 GiB that is not there
    path = tmp_path / "hostile.onnx"
    tracemalloc.start()
    try:
        for content in (message(7, deep), hole):
            path.write_bytes(content)
            with pytest.raises(InputError, match="cannot be read as an ONNX model"):
                onnx_precision(path)
        os.truncate(path, 2**31)
        with pytest.raises(InputError, match="as one ONNX file can hold"):
            onnx_precision(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("change", [computes, stores_weights])
def test_foreign_fp16_runs_on_the_cpu(change: Callable[[int], Change], foreign: Foreign) -> None:
    engine = open_engine(foreign(change(FLOAT16)), threads=1)
    assert engine.precision == "fp16"
    assert "ONNX Runtime" in engine.name  # OpenVINO would compute it in float32
    x, t = np.linspace(-2, 2, 128, dtype=np.float32).reshape(2, 1, 8, 8), np.array([3, 400], np.float32)
    found = np.zeros_like(x)
    engine.bind(x, t, found)()
    expected = GaussianNetwork(PROCESS, 0.0, 0.5)(x.astype(np.float64), t)
    error = np.abs(found - expected).max()
    assert 1e-5 < error < 4 * 2.0**-11


@pytest.mark.parametrize("change", [casts_at_the_end, stores_weights])
def test_what_only_stores_bf16_or_casts_to_it_runs_on_the_cpu(
    change: Callable[[int], Change], foreign: Foreign
) -> None:
    path = foreign(change(BFLOAT16))
    arguments: dict[str, Any] = {"sampler": "ddim", "num_steps": 10, "threads": 1}
    with pytest.raises(InputError, match="rounding the prediction to bf16 moves a step"):
        Sampler(path, **arguments)
    sampler = Sampler(path, **arguments, force=True)
    assert sampler.engine.name.endswith("(bf16, CPU)")
    assert sampler.sample(2).shape == (2, 8, 8, 1)


def test_the_conditioning_rule_is_in_force_for_foreign_files(foreign: Foreign) -> None:
    flags = ProcessFlags(clip_sample="none")

    def sampler(path: Path, force: bool = False) -> Sampler:
        return Sampler(path, sampler="ddim", num_steps=10, threads=1, flags=flags, force=force)

    assert sampler(foreign()).engine.precision == "fp32"
    path = foreign(casts_at_the_end(FLOAT16))
    with pytest.raises(InputError, match="rounding the prediction to fp16 moves a step.*; --force .* all the same"):
        sampler(path)
    assert sampler(path, force=True).sample(2).shape == (2, 8, 8, 1)
    milder = Sampler(path, sampler="ddim", num_steps=10, threads=1, flags=flags, lambda_min=-5.1)
    assert milder.sample(2).shape == (2, 8, 8, 1)
