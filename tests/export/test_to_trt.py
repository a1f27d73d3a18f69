"""From a checkpoint or an ONNX file to a published plan, as a user runs it; the builder is TensorRT-RTX itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorrt_rtx
from onnx import numpy_helper

from commands.errors import EXIT_INPUT, EXIT_VERIFICATION, DeviceUnavailableError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export import low_precision, to_trt
from export.low_precision import MixedPrecision
from runtime.device.driver import DriverFacts, Gpu, driver_facts
from runtime.engines import interface
from runtime.engines.opening import open_engine
from runtime.engines.tensorrt_refusals import accept_plan
from runtime.formats import sidecar as formats_sidecar
from runtime.formats.golden import Golden
from runtime.formats.plan_description import PlanDescription
from runtime.formats.sidecar import golden_path, read_sidecar, sidecar_path
from tests.checkpoints import save_tiny_checkpoint
from tests.gaussian import GaussianNetwork

needs_no_gpu = pytest.mark.skipif(not driver_facts().missing, reason="needs a machine without an NVIDIA GPU")


def run(*arguments: object) -> int:
    return to_trt.main([str(argument) for argument in arguments])


def check_published(out: Path, precision: str) -> dict[str, object]:
    """What must hold of any plan; returns the sidecar's `engine`."""
    assert sorted(path.name for path in out.parent.iterdir() if path.name.startswith((out.name, "."))) == [
        "unet.plan",
        "unet.plan.golden.npz",
        "unet.plan.json",
    ]
    sidecar = read_sidecar(out, PlanDescription)
    assert sidecar.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert sidecar.golden_sha256 == hashlib.sha256(golden_path(out).read_bytes()).hexdigest()
    golden = Golden.from_bytes(golden_path(out).read_bytes(), out, "")
    engine, verification = json.loads(sidecar_path(out).read_text())["engine"], sidecar.verification
    # The runtime takes the sidecar as it is, and nothing is lost.
    assert sidecar.engine.compute_capabilities
    assert sidecar.engine.to_json() == engine
    assert (engine["flavor"], engine["builder_version"]) == ("tensorrt-rtx", tensorrt_rtx.__version__)
    assert engine["precision"] == precision
    assert (
        engine["inputs"]["x"]["type"]
        == engine["outputs"]["prediction"]["type"]
        == {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
    )
    assert not engine["tf32"]
    assert "REQUIRE_USER_ALLOCATION" in engine["builder_flags"]
    assert verification.passed
    assert len(verification.timesteps) == len(golden.timesteps) == 16
    assert verification.chain_steps == 20
    return engine


@pytest.mark.parametrize(
    ("name", "precision"),
    # The digits in fp16 are built from their checkpoint, below.
    [("digits", "fp32"), ("digits", "bf16"), ("color", "fp32"), ("color", "fp16"), ("color", "bf16")],
)
def test_every_precision(name: str, precision: str, networks: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet.plan"
    flags = [] if precision == "fp32" else [f"--{precision}"]
    assert run("--onnx", networks / f"{name}.onnx", "--out", out, *flags) == 0
    engine = check_published(out, precision)
    assert engine["onnx_sha256"] == hashlib.sha256((networks / f"{name}.onnx").read_bytes()).hexdigest()
    assert engine["inputs"]["t"] == {"type": "int64", "shape": ["N"]}
    assert engine["time_path"]["folded"]
    assert engine["time_path"]["num_nodes_after"] < engine["time_path"]["num_nodes_before"]
    assert engine["batch_profiles"] == [{"min": 1, "opt": 8, "max": 64}]
    assert engine["kept_in_float32"] == []
    verification = read_sidecar(out, PlanDescription).verification
    if precision == "fp32":  # tables hold what ONNX Runtime itself computed
        assert verification.worst < 1e-6
    else:
        # Flat over t: nothing is wrong with how t is treated.
        assert verification.worst < 2 * verification.median
        least = {"fp16": 1e-4, "bf16": 1e-3}[precision]
        assert least < verification.median < verification.tolerance


def test_a_checkpoint(networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "engines" / "unet.plan"
    assert run("--checkpoint", networks / "digits", "--fp16", "--out", out, "--json") == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert "time path folded: " in output.err
    check_published(out, "fp16")
    fields = json.loads(sidecar_path(out).read_text())
    del fields["digest"]
    assert {name: report[name] for name in fields} == fields
    assert fields["engine"]["onnx_sha256"] == hashlib.sha256((networks / "digits.onnx").read_bytes()).hexdigest()
    assert fields["verification"]["reference"].startswith("PyTorch")


@needs_no_gpu
def test_a_plan_that_was_not_run_says_so(gaussian: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "unet.plan"
    assert run("--onnx", gaussian, "--out", out) == 0
    assert "not run: verified as its network on the CPU" in capsys.readouterr().out
    sidecar = read_sidecar(out, PlanDescription)
    assert not sidecar.verification.executed
    assert sidecar.engine.built_on_gpu is sidecar.engine.built_on_driver is None
    with pytest.raises(DeviceUnavailableError, match="no NVIDIA GPU found"):
        open_engine(out, device="cuda")


def test_trtexecs_spelling(networks: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet.plan"
    shapes = ("--minShapes=x:2x1x8x8,t:2", "--optShapes=x:4x1x8x8", "--maxShapes=x:8x1x8x8,t:8")
    more = ("--builderOptimizationLevel=2", "--memPoolSize=workspace:512M", "--noTF32", "--stronglyTyped")
    more += ("--skipInference", "--computeCapabilities=86,89")
    assert run(f"--onnx={networks / 'digits.onnx'}", f"--saveEngine={out}", *shapes, *more) == 0
    engine = check_published(out, "fp32")
    assert engine["batch_profiles"] == [{"min": 2, "opt": 4, "max": 8}]
    assert engine["optimization_level"] == 2
    assert engine["compute_capabilities"] == ["8.6", "8.9"]


def test_a_static_batch_without_folding(networks: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet.plan"
    assert run("--onnx", networks / "digits.onnx", "--batch", 3, "--no-fold-time", "--bf16", "--out", out) == 0
    engine = check_published(out, "bf16")
    assert engine["inputs"] == {
        "x": {"type": "bfloat16", "shape": [3, 1, 8, 8]},
        "t": {"type": "float32", "shape": [3]},
    }
    assert engine["batch_profiles"] == [{"min": 3, "opt": 3, "max": 3}]
    assert engine["time_path"] == {"folded": False}
    assert any("time_proj" in name or "time_embedding" in name for name in engine["kept_in_float32"])


def test_group_normalization_as_one_node(networks: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet.plan"
    assert run("--onnx", networks / "digits.onnx", "--group-norm", "group", "--out", out) == 0
    engine = check_published(out, "fp32")
    num_instance = sum(
        node.op_type == "InstanceNormalization" for node in onnx.load(networks / "digits.onnx").graph.node
    )
    assert (engine["group_norm"], engine["group_norms"]) == ("group_normalization", num_instance)
    num_nodes = len(onnx.load(networks / "digits.onnx").graph.node)
    assert engine["time_path"]["num_nodes_before"] == num_nodes - 4 * num_instance  # five nodes are one


def test_several_profiles_and_foreign_names(gaussian: Path, tmp_path: Path) -> None:
    model = onnx.load(gaussian)
    del model.metadata_props[:]
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [{"x": "sample", "t": "timestep", "prediction": "noise"}.get(name, name) for name in names]
    for entry, name in zip((*model.graph.input, *model.graph.output), ("sample", "timestep", "noise"), strict=True):
        entry.name = name
    onnx.save(model, tmp_path / "foreign.onnx")
    out = tmp_path / "unet.plan"
    assert run("--onnx", tmp_path / "foreign.onnx", "--out", out) == EXIT_INPUT
    flags = ["--beta-schedule", "linear", "--num-train-timesteps", 50, "--prediction-type", "epsilon"]
    flags += ["--variance-type", "fixed_large", "--clip-sample", "none", "--profile", "1,1,4", "--profile", "8,8,64"]
    assert run("--onnx", tmp_path / "foreign.onnx", *flags, "--out", out) == 0
    engine = check_published(out, "fp32")
    assert list(engine["inputs"]) == ["x", "t"]
    assert [profile["max"] for profile in engine["batch_profiles"]] == [4, 64]


def test_a_wrong_conversion_is_not_published(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert = low_precision.to_mixed_precision

    def damaged(*arguments: object) -> MixedPrecision:
        mixed = convert(*arguments)  # type: ignore[arg-type]
        for table in mixed.model.graph.initializer:
            if table.name.startswith("time_table") and len(table.dims) > 1:
                values = numpy_helper.to_array(table).copy()
                values[700:] *= np.float16(1.5)
                table.CopyFrom(numpy_helper.from_array(values, table.name))
        return mixed

    monkeypatch.setattr(low_precision, "to_mixed_precision", damaged)
    assert run("--onnx", networks / "digits.onnx", "--fp16", "--out", tmp_path / "unet.plan") == EXIT_VERIFICATION
    error = capsys.readouterr().err
    assert "nothing was published. Give --bf16, or neither for fp32." in error
    rows = [line.split() for line in error.splitlines() if line.endswith("too large") and line.split()[0].isdigit()]
    assert rows
    assert min(int(row[0]) for row in rows) >= 700
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is right in float32, with activations beyond fp16's range in front of its normalizations."""
    import torch
    from diffusers import UNet2DModel

    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("overflowing"))
    unet = UNet2DModel.from_pretrained(folder / "unet")
    with torch.no_grad():
        for tensor in unet.conv_in.parameters():
            tensor *= 1e5  # weights below 65504, activations above; whatever follows is normalized first
    assert unet.conv_in.weight.abs().max() < 65504
    unet.save_pretrained(folder / "unet")
    return folder


@pytest.mark.parametrize("form", ["instance", "group"])
def test_what_exceeds_the_range_of_fp16_stays_in_float32(overflowing: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "unet.plan"
    assert run("--checkpoint", overflowing, "--fp16", "--group-norm", form, "--out", out) == 0
    engine = check_published(out, "fp16")
    assert any("conv_in" in name for name in engine["kept_in_float32"])


@pytest.mark.parametrize("form", ["instance", "group"])
def test_where_it_does_not_no_plan_is_published(
    overflowing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """A plan that gives NaN is none: NaN fails every comparison."""
    monkeypatch.setattr(low_precision, "_MAX_FP16", 1e30)
    out = tmp_path / "unet.plan"
    assert run("--checkpoint", overflowing, "--fp16", "--group-norm", form, "--out", out) == EXIT_VERIFICATION
    error = capsys.readouterr().err
    assert "nan" in error
    assert "nothing was published. Give --bf16, or neither for fp32." in error
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_the_old_plan_and_no_reader_takes_a_mixed_set(
    gaussian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "unet.plan"
    assert run("--onnx", gaussian, "--out", out) == 0
    before, published = {path.name: path.read_bytes() for path in tmp_path.iterdir()}, []

    class Killed(BaseException):
        pass

    def killed_before_the_sidecar(path: Path, text: str) -> None:
        published.append(path.name)
        raise Killed

    monkeypatch.setattr(formats_sidecar, "write_whole_text", killed_before_the_sidecar)
    with pytest.raises(Killed):
        run("--onnx", gaussian, "--no-fold-time", "--out", out)
    assert published == ["unet.plan.json"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    out.write_bytes(out.read_bytes() + b"of another build")
    with pytest.raises(ValueError, match="but its sidecar was written for"):
        accept_plan(out)


def test_where_a_gpu_is_the_plan_itself_runs(
    gaussian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The GPU and its engine are stand-ins: what runs is the network's closed form, once right and once wrong."""
    process = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 50))
    network, factor = GaussianNetwork(process, 0.2, 0.5), [1.0]
    gpu = Gpu(0, "NVIDIA L4", "8.9", 2**34, 58)
    monkeypatch.setattr(to_trt, "driver_facts", lambda: DriverFacts("580.95", "13.0", (gpu,), ""))
    accepted_paths = []

    class Accepted:
        def __init__(self, path: Path, sidecar: object) -> None:
            accepted_paths.append(path.read_bytes()[:4])
            self.plan = self

        def fitting_batch(self, batch_size: int) -> int:
            return batch_size

    class Engine(interface.Engine):
        name = "TensorRT-RTX (fp32, NVIDIA L4)"

        def __init__(self, accepted: Accepted) -> None:
            self.process = process

        def batch_range(self) -> tuple[int, int | None]:
            return 1, None

        def _bind(self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray) -> object:
            def call() -> None:
                prediction[:] = network(x, t) * factor[0]

            return call

    monkeypatch.setattr("runtime.engines.tensorrt_refusals.accept_plan", Accepted)
    monkeypatch.setattr("runtime.engines.tensorrt_engine.TensorRtEngine", Engine)
    out = tmp_path / "unet.plan"
    assert run("--onnx", gaussian, "--flavor", "rtx", "--out", out) == 0
    verification = read_sidecar(out, PlanDescription).verification
    assert verification.executed
    assert verification.ran_on == "TensorRT-RTX (fp32, NVIDIA L4), driver 580.95"
    assert read_sidecar(out, PlanDescription).engine.to_json()["built_on"] == {"gpu": "NVIDIA L4", "driver": "580.95"}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    factor[0] = 1.001
    assert run("--onnx", gaussian, "--flavor", "rtx", "--out", out) == EXIT_VERIFICATION
    assert "TensorRT-RTX (fp32, NVIDIA L4), driver 580.95: at most 0.001" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    # For other GPUs it is not run.
    assert run("--onnx", gaussian, "--flavor", "rtx", "--compute-capabilities", "12.0", "--out", out) == 0
    assert not read_sidecar(out, PlanDescription).verification.executed
    assert len(accepted_paths) == 2
