"""fp16 and bf16 files: what is in them, what they predict, what runs them, and what is not published."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorrt_rtx
import torch
from onnx import TensorProto, numpy_helper
from onnx.defs import get_schema

from commands.errors import EXIT_DEVICE, EXIT_INPUT, EXIT_VERIFICATION, DeviceUnavailableError
from diffusion.errors import InputError
from diffusion.process import METADATA_KEY
from export import ExportRequest, low_precision, source, to_onnx
from export.low_precision import MixedPrecision
from export.network_io import tensor_types
from runtime import sample
from runtime.engines.onnx_file import read_onnx
from runtime.engines.onnx_precision import PRECISION_KEY
from runtime.engines.opening import open_engine
from runtime.engines.verification import predict_with
from runtime.formats.onnx_seal import SEAL_KEY
from runtime.process_flags import ProcessFlags
from runtime.sampler import Sampler
from tests.checkpoints import save_tiny_checkpoint

ELEMENT_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

T = 25
Exports = dict[str, Path]
# Of the list of kernels of ONNX Runtime's CUDA provider (docs/OperatorKernels.md, 2026): for each operator, and the
# version of it that a graph's opset means, the types that have a kernel. Every type is there for what moves data.
CUDA_KERNELS = {
    ("Conv", 11): {"fp32", "fp16"},
    ("Conv", 22): {"fp32", "fp16", "bf16"},
    ("InstanceNormalization", 6): {"fp32", "fp16"},
    ("LayerNormalization", 17): {"fp32", "fp16", "bf16"},
    ("Resize", 18): {"fp32", "fp16"},
    ("Resize", 19): {"fp32", "fp16"},
    **{
        (name, version): {"fp32", "fp16", "bf16"}
        for name, versions in {
            "Add": [14],
            "Cast": [13, 21],
            "Concat": [13],
            "Gather": [13],
            "MatMul": [13],
            "Mul": [14],
            "Reshape": [14, 21],
            "Sigmoid": [13],
            "Softmax": [13],
            "Transpose": [13, 21],
        }.items()
        for version in versions
    },
}


def run(*arguments: object) -> int:
    return to_onnx.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as this are no faster with more, and PyTorch's threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with attention, and a cosine schedule, whose first steps amplify rounding if they are not clipped."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return save_tiny_checkpoint(folder, num_train_timesteps=T, beta_schedule="squaredcos_cap_v2")


@pytest.fixture(scope="module")
def traced_once(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The float32 file; what is exported after it is not traced again."""
    out = tmp_path_factory.mktemp("float32") / "unet.onnx"
    to_onnx.export_onnx(ExportRequest(out, checkpoint))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_trace", lambda *arguments: onnx.load(out))
        yield out


@pytest.fixture(scope="module")
def exports(checkpoint: Path, traced_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """The file of each precision."""
    folder = tmp_path_factory.mktemp("exports")
    made = {"fp32": traced_once}
    for precision in ("fp16", "bf16"):
        made[precision] = folder / f"unet.{precision}.onnx"
        exported = to_onnx.export_onnx(ExportRequest(made[precision], checkpoint, precision=precision))
        made[precision].with_suffix(".json").write_text(json.dumps(exported.report, allow_nan=False))
    return made


@pytest.mark.parametrize(("precision", "opset"), [("fp16", 18), ("bf16", 22)])
def test_file_keeps_the_contract(precision: str, opset: int, exports: Exports, tmp_path: Path) -> None:
    model, float32 = onnx.load(exports[precision]), onnx.load(exports["fp32"])
    low = ELEMENT_TYPES[precision]
    shapes = {
        entry.name: (
            entry.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim],
        )
        for entry in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "x": (TensorProto.FLOAT, ["N", 1, 8, 8]),
        "t": (TensorProto.INT64, ["N"]),
        "prediction": (TensorProto.FLOAT, ["N", 1, 8, 8]),
    }
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    of_float32 = {entry.key: entry.value for entry in float32.metadata_props}
    assert metadata.pop(METADATA_KEY) == of_float32.pop(METADATA_KEY)
    seals = metadata.pop(SEAL_KEY), of_float32.pop(SEAL_KEY)
    assert [seal.split()[1] for seal in seals] == [precision, "fp32"]
    assert (metadata, of_float32) == ({PRECISION_KEY: precision}, {})
    assert read_onnx(exports[precision]).precision == precision
    del model.metadata_props[-1]  # by its graph and property, as of a file from before there was a seal
    older = tmp_path / "older.onnx"
    onnx.save(model, older)
    assert read_onnx(older).precision == precision
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert (model.producer_name, model.doc_string, model.graph.name) == (
        float32.producer_name,
        float32.doc_string,
        float32.graph.name,
    )
    types = {entry.data_type for entry in model.graph.initializer if numpy_helper.to_array(entry).size > 4}
    assert types == {low}  # tables and weights; shapes and scales have at most four numbers
    # At the ends, and around what has no bf16 kernel.
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == (2 if precision == "fp16" else 4)
    assert "x" in casts[0].input
    assert "prediction" in casts[-1].output
    words = (b"/tmp", b"/home", b".py", str(Path.home()).encode())
    assert not [word for word in words if word in exports[precision].read_bytes()]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_report(precision: str, exports: Exports) -> None:
    out = exports[precision]
    content, report = out.read_bytes(), json.loads(out.with_suffix(".json").read_text())
    assert (report["sha256"], report["size_bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert (report["precision"], report["opset"]) == (precision, 18 if precision == "fp16" else 22)
    assert report["num_nodes"] == len(onnx.load(out).graph.node)
    assert report["time_path"]["folded"]
    kept = [name.rpartition("/")[2] for name in report["kept_in_float32"]]
    assert kept == ([] if precision == "fp16" else ["Resize"])
    verification = report["verification"]
    assert verification["passed"]
    assert verification["executed"] == (precision == "fp16")
    assert verification["reference"].startswith("PyTorch")
    assert (len(verification["timesteps"]), verification["chain"]["steps"]) == (16, 20)
    unit = 2.0**-11 if precision == "fp16" else 2.0**-8
    assert unit / 4 < verification["median_relative_error"] < verification["tolerance"] < 9 * unit
    compared = [name.partition("the ")[2] for name in verification["compared_relative_error"]]
    rounded = f"{precision} graph with every tensor rounded"
    assert compared == (["fp16 graph", rounded] if precision == "fp16" else [rounded])
    summary = report["summary"]
    assert ("bf16 was not run but emulated" in summary) == (precision == "bf16")
    assert summary.endswith(f"--engine {out}" + (" --device cuda" if precision == "bf16" else ""))


def test_same_checkpoint_gives_the_same_bytes(
    checkpoint: Path, exports: Exports, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models" / "unet.onnx"
    assert run("--checkpoint", checkpoint, "--bf16", "--out", out, "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["precision"] == "bf16"
    assert "converting to bf16 with AutoCast" in printed.err
    assert out.read_bytes() == exports["bf16"].read_bytes()


def test_fp16_runs_on_the_cpu(exports: Exports) -> None:
    rng = np.random.default_rng(0)
    engine = open_engine(exports["fp16"])
    assert engine.precision == "fp16"
    assert engine.name == f"ONNX Runtime {ort.__version__} (fp16, CPU)"  # whatever else is installed
    float32 = open_engine(exports["fp32"], backend="onnxruntime")
    assert (float32.precision, float32.name) == ("fp32", f"ONNX Runtime {ort.__version__} (CPU)")
    for num in (1, 3):
        x, t = rng.standard_normal((num, 1, 8, 8)).astype(np.float32), rng.integers(0, T, num).astype(np.float32)
        expected = predict_with(float32)(x, t)
        error = np.linalg.norm(predict_with(engine)(x, t) - expected) / np.linalg.norm(expected)
        assert 1e-5 < error < 4e-3  # it is fp16, and it is this network


def test_low_precision_is_subject_to_the_conditioning_rule(exports: Exports) -> None:
    # From T − 1, where rounding is amplified most.
    arguments: dict[str, Any] = {"num_steps": 5, "spacing": "trailing", "threads": 1}
    arguments["flags"] = ProcessFlags(clip_sample="none")
    assert Sampler(exports["fp32"], **arguments).sample(2, seed=0).shape == (2, 8, 8, 1)
    with pytest.raises(InputError, match="rounding the prediction to fp16 moves a step"):
        Sampler(exports["fp16"], **arguments)


def test_bf16_on_a_cpu_is_one_line(exports: Exports, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = exports["bf16"]
    words = (
        f"{path}: computes in bf16, and ONNX Runtime has no bf16 convolutions on the CPU; .*export.to_openvino --bf16"
    )
    for backend in ("auto", "onnxruntime"):
        with pytest.raises(DeviceUnavailableError, match=words):
            open_engine(path, backend=backend)
    arguments = ["--engine", path, "--num", 1, "--out", tmp_path / "samples"]
    assert sample.main([str(argument) for argument in arguments]) == EXIT_DEVICE
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--device cuda" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("precision", "way_out"), [("fp16", "`backend=onnxruntime`"), ("bf16", "to_openvino`, with --bf16")]
)
def test_openvino_would_change_the_precision(precision: str, way_out: str, exports: Exports) -> None:
    with pytest.raises(InputError, match=f"is in {precision}, which OpenVINO does not run as it is.*{way_out}"):
        open_engine(exports[precision], backend="openvino")
    # What it would do: told float32, and saying so, it runs bf16 in bf16 where the CPU has it, and fp16 in float32.
    import openvino

    core = openvino.Core()
    model = core.read_model(str(exports[precision]))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    runs_in = {node.get_rt_info()["runtimePrecision"].astype(str) for node in compiled.get_runtime_model().get_ops()}
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert ("bf16" in runs_in) == (precision == "bf16" and has_bf16)
    assert "f16" not in runs_in


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_cuda_provider_lists_a_kernel_for_every_node(precision: str, exports: Exports) -> None:
    """What has none there goes to the CPU, or ends the session where that has none either."""
    model = onnx.load(exports[precision])
    types, names = tensor_types(model), {number: name for name, number in ELEMENT_TYPES.items()}
    opset = model.opset_import[0].version
    missing = []
    for node in model.graph.node:
        key = (node.op_type, get_schema(node.op_type, opset).since_version)
        used = {names[types[name]] for name in (node.input[0], node.output[0]) if types[name] in names}
        if not used or not used <= CUDA_KERNELS.get(key, set()):
            missing.append((node.name, *key, used))
    assert missing == []


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_anybodys_tensorrt_takes_it(precision: str, exports: Exports) -> None:
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network()  # of TensorRT for RTX always strongly typed
    parser = tensorrt_rtx.OnnxParser(network, logger)
    assert parser.parse(exports[precision].read_bytes()), parser.get_error(0)
    types = {network.get_input(i).name: network.get_input(i).dtype for i in range(network.num_inputs)}
    assert types == {"x": tensorrt_rtx.float32, "t": tensorrt_rtx.int64}
    assert network.get_output(0).dtype == tensorrt_rtx.float32


def test_a_wrong_conversion_is_not_published(
    checkpoint: Path,
    traced_once: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    convert = low_precision.to_mixed_precision

    def damaged(*arguments: Any) -> MixedPrecision:
        mixed = convert(*arguments)
        for table in mixed.model.graph.initializer:
            values = numpy_helper.to_array(table).copy()
            if table.name.startswith("time_table") and values.ndim > 1:
                values[18:] *= np.float16(1.5)
                table.CopyFrom(numpy_helper.from_array(values, table.name))
        return mixed

    monkeypatch.setattr(low_precision, "to_mixed_precision", damaged)
    out = tmp_path / "unet.onnx"
    out.write_bytes(b"an older file")
    assert run("--checkpoint", checkpoint, "--fp16", "--out", out) == EXIT_VERIFICATION
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "nothing was published. Give --bf16, or neither for fp32." in printed.err
    rows = [line.split() for line in printed.err.splitlines() if line.endswith("too large")]
    failed = [int(row[0]) for row in rows if row[0].isdigit()]
    assert failed
    assert min(failed) >= 18
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"an older file"]


def test_one_precision_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--fp16", "--bf16", "--out", tmp_path / "unet.onnx")
    assert stop.value.code == EXIT_INPUT
    assert "not allowed with argument" in capsys.readouterr().err
    with pytest.raises(InputError, match="precision is 'int8', expected one of fp32, fp16, bf16"):
        ExportRequest(tmp_path / "unet.onnx", precision="int8")
