"""What ONNX Runtime runs is a network of single samples, or it is not run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from commands.errors import DeviceUnavailableError, VerificationError
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.engines import onnx_opening
from runtime.engines.batch_independence import BATCHES
from runtime.engines.onnx_device import OnnxDeviceEngine
from runtime.engines.onnx_file import OnnxFile
from runtime.engines.opening import open_engine
from runtime.process_flags import ProcessFlags
from runtime.sample import main
from runtime.sampler import Sampler
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.foreign_onnx import BFLOAT16, casts_at_the_end
from tests.runtime.engines.operator_variants import model
from tests.runtime.engines.shared_device import kernels, memory

__all__ = ["kernels", "memory"]  # fixtures

FLAGS = ProcessFlags("linear", None, None, 100, "epsilon", "fixed_large", 1.0)
WORDS = ["--beta-schedule", "linear", "--num-train-timesteps", "100", "--prediction-type", "epsilon"]
WORDS += ["--variance-type", "fixed_large", "--clip-sample", "1", "--num", "2", "--steps", "2"]
MIXES = "depend on what else is in the batch"
ALONE = "y = Mul(m, most)"
ZEROS = "<value = float[3] {0, 0, 0}>"
ONES = "<value = float[3] {1, 1, 1}>"
MIXING = {
    "mean": "r = ReduceMean(m, first) y = Sub(m, r)",
    "maximum": "r = ReduceMax(m, first) y = Sub(m, r)",
    "mean of all": "r = ReduceMean<keepdims=0>(m) y = Sub(m, r)",
    "running sum": "at = Constant<value = int64 {0}>() y = CumSum(m, at)",
    "softmax": "y = Softmax<axis=0>(m)",
    "reversed": "n = Shape<start=0, end=1>(m) c = Constant<value_ints=[3]>() l = Expand(n, c) "
    "y = ReverseSequence<batch_axis=1, time_axis=0>(m, l)",
    "training": f"scale = Constant{ONES}() bias = Constant{ZEROS}() mean = Constant{ZEROS}() var = Constant{ONES}() "
    "y, later, last = BatchNormalization<training_mode=1>(m, scale, bias, mean, var)",
    "sorted": "all = Shape<start=0, end=1>(m) y, places = TopK<axis=0>(m, all)",
    "first sample": "zero_at = Constant<value_ints=[0]>() r = Gather<axis=0>(m, zero_at) y = Sub(m, r)",
    "neighbours": "flat = Constant<value_ints=[1, 1, -1, 192]>() image = Reshape(m, flat) "
    "kernel = Constant<value = float[1,1,3,1] {0.5, 1, 0.5}>() r = Conv<pads=[1,0,1,0]>(image, kernel) "
    "as_m = Shape(m) y = Reshape(r, as_m)",
}
QUANTIZED = " whole, step, zero_point = DynamicQuantizeLinear(z) y = DequantizeLinear(whole, step, zero_point)"

Save = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("runtime.engines.onnx_opening._cpu_flags", lambda: frozenset({"avx2", "fma"}))
    return tmp_path / "cache" / "ddpm-rt"


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(body: str, scalar_t: bool = False) -> Path:
        made = model(body)
        if scalar_t:
            made = parser.parse_model(
                onnx.printer.to_text(made)
                .replace("float[N] t", "float t")
                .replace("Unsqueeze (u, behind)", "Identity (u)")
            )
        onnx.save(made, tmp_path / "foreign.onnx")
        return tmp_path / "foreign.onnx"

    return save


def quantized(body: str) -> str:
    """The body with its result dynamically quantized."""
    head, _, tail = body.rpartition("y = ") if "y, " not in body else body.rpartition("y, ")
    return f"{head}z{', ' if 'y, ' in body else ' = '}{tail}{QUANTIZED}"


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "int8"])
@pytest.mark.parametrize("name", sorted(MIXING))
def test_a_network_that_mixes_its_batch_is_refused(name: str, low: bool, save: Save) -> None:
    path = save(quantized(MIXING[name]) if low else MIXING[name])
    for _ in range(2):  # nothing that failed is kept
        with pytest.raises(VerificationError, match=MIXES):
            open_engine(path, threads=1, flags=FLAGS, backend="onnxruntime")
    if low:  # auto takes ONNX Runtime for it
        with pytest.raises(VerificationError, match=MIXES):
            open_engine(path, threads=1, flags=FLAGS)


@pytest.mark.parametrize("backend", ["auto", "openvino", "onnxruntime"])
@pytest.mark.parametrize("name", ["mean", "running sum", "first sample"])
def test_with_one_timestep_for_all(name: str, backend: str, save: Save) -> None:
    path = save(MIXING[name], scalar_t=True)
    with pytest.raises(VerificationError, match=MIXES):
        open_engine(path, threads=1, flags=FLAGS, backend=backend)
    assert open_engine(save(ALONE, scalar_t=True), threads=1, flags=FLAGS, backend=backend).precision == "fp32"


def test_the_command(save: Save, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(MIXING["mean"])
    monkeypatch.chdir(path.parent)
    assert main(["--engine", path.name, *WORDS, "--backend", "onnxruntime", "--out", "a"]) == 3
    assert "depend on what else is in the batch" in capsys.readouterr().err
    assert not Path("a").exists()
    save(ALONE)
    assert main(["--engine", path.name, *WORDS, "--backend", "onnxruntime", "--out", "a"]) == 0


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "int8"])
def test_what_passes_is_compared_once(low: bool, save: Save, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(quantized(ALONE) if low else ALONE)
    open_engine(path, flags=FLAGS, backend="onnxruntime")
    assert "first use with ONNX Runtime" in capsys.readouterr().err
    assert os.listdir(cache) == ["independent"]
    open_engine(path, flags=FLAGS, backend="onnxruntime")
    assert capsys.readouterr().err == ""
    save(ALONE.replace("most", "neg"))
    open_engine(path, flags=FLAGS, backend="onnxruntime")
    assert "first use with ONNX Runtime" in capsys.readouterr().err


def test_without_a_cache_it_is_compared_each_time(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        open_engine(save(ALONE), flags=FLAGS, backend="onnxruntime")
        assert "cannot be written, so the next run compares again" in capsys.readouterr().err


def test_a_random_operator_is_called_what_it_is(save: Save) -> None:
    path = save("noise = RandomNormalLike(m) y = Add(m, noise)")
    with pytest.raises(VerificationError, match="or on chance: .*from call to call.*take random operators"):
        open_engine(path, flags=FLAGS, backend="onnxruntime")


def test_not_finite_in_a_batch_or_alone(save: Save) -> None:
    """The variance over the batch: 0 of a single sample, which makes its logarithm infinite."""
    path = save(
        "r = ReduceMean(m, first) d = Sub(m, r) e = Mul(d, d) var = ReduceMean(e, first) w = Log(var) y = Add(m, w)"
    )
    with pytest.raises(VerificationError, match=MIXES):
        open_engine(path, flags=FLAGS, backend="onnxruntime")
    # What is not finite either way is reported by the chain.
    assert open_engine(save("y = Sqrt(m)"), flags=FLAGS, backend="onnxruntime").precision == "fp32"


def fix_batch(path: Path, batch: int) -> None:
    fixed = onnx.load(path)
    for entry in (*fixed.graph.input, *fixed.graph.output):
        entry.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(fixed, path)


@pytest.mark.parametrize("batch", [2, 4, 9])
def test_a_fixed_batch(batch: int, save: Save) -> None:
    path = save(MIXING["mean"])
    fix_batch(path, batch)
    with pytest.raises(VerificationError, match=MIXES):
        open_engine(path, flags=FLAGS, backend="onnxruntime")
    fix_batch(save(ALONE), batch)
    assert open_engine(path, flags=FLAGS, backend="onnxruntime").batch_range() == (batch, batch)


def test_a_fixed_batch_of_one_has_nothing_to_mix(save: Save, cache: Path) -> None:
    path = save(MIXING["mean"])
    fix_batch(path, 1)
    open_engine(path, flags=FLAGS, backend="onnxruntime")
    assert not cache.exists()


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_a_batch_that_is_fixed_inside(batch: int, save: Save) -> None:
    """The first axis is open, and still there is only one batch that runs."""
    inside = f"as_fixed = Constant<value_ints=[{batch}, 3, 8, 8]>() z = Reshape(m, as_fixed)"
    assert open_engine(save(f"{inside} y = Mul(z, most)"), flags=FLAGS, backend="onnxruntime").precision == "fp32"
    path = save(f"{inside} r = ReduceMean(z, first) y = Sub(z, r)")
    if batch > 1:
        with pytest.raises(VerificationError, match=MIXES):
            open_engine(path, flags=FLAGS, backend="onnxruntime")


def test_a_network_that_runs_with_no_batch(save: Save) -> None:
    path = save("as_fixed = Constant<value_ints=[23, 3, 8, 8]>() y = Reshape(m, as_fixed)")
    with pytest.raises(InputError, match="fails on a batch of 1"):
        open_engine(path, flags=FLAGS, backend="onnxruntime")


def test_another_output_is_another_network(tmp_path: Path) -> None:
    """For both comparisons."""
    made = model("r = ReduceMean(m, first) y = Sub(m, r) good = Mul(m, most)")
    made.graph.output.append(onnx.helper.make_tensor_value_info("good", onnx.TensorProto.FLOAT, ["N", 3, 8, 8]))
    onnx.save(made, tmp_path / "two.onnx")

    def flags(name: str) -> ProcessFlags:
        return ProcessFlags("linear", None, None, 100, "epsilon", "fixed_large", 1.0, output_name=name)

    for backend in ("onnxruntime", "openvino", "auto"):
        open_engine(tmp_path / "two.onnx", flags=flags("good"), backend=backend)
        with pytest.raises(VerificationError, match=MIXES):
            open_engine(tmp_path / "two.onnx", flags=flags("p"), backend=backend)


def test_on_a_gpu_where_there_is_nothing_to_compare_with(
    tmp_path: Path, memory: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ONNX Runtime's CPU provider in the GPU's place."""

    class Device(OnnxDeviceEngine):
        def __init__(self, path: Path, flags: ProcessFlags | None, file: OnnxFile) -> None:
            super().__init__(path, flags, memory=memory, device="cpu", file=file)  # type: ignore[arg-type]

    def cannot(*arguments: object) -> None:
        raise DeviceUnavailableError("no bf16 convolutions on the CPU")

    monkeypatch.setattr("runtime.engines.onnx_device.OnnxDeviceEngine", Device)
    monkeypatch.setattr(onnx_opening, "_open_onnx_runtime", cannot)
    onnx.save(model(MIXING["mean"]), tmp_path / "unet.onnx")
    with pytest.raises(VerificationError, match=MIXES):
        open_engine(tmp_path / "unet.onnx", device="cuda", flags=FLAGS)
    onnx.save(model(ALONE), tmp_path / "unet.onnx")
    assert isinstance(open_engine(tmp_path / "unet.onnx", device="cuda", flags=FLAGS), Device)


def test_bf16_is_no_mixing(tmp_path: Path) -> None:
    process = Process(SampleShape(2, 4, 4), NoiseSchedule.make("linear", 100), variance_type="fixed_large")
    path = GaussianNetwork(process, 0.1, 0.4).save_onnx(tmp_path / "unet.onnx")
    rounded = onnx.load(path)
    casts_at_the_end(BFLOAT16)(rounded)
    onnx.save(rounded, path)
    assert open_engine(path).precision == "bf16"


def test_it_is_cheap() -> None:
    """At most 16 samples are evaluated: those of the batches, and each alone."""
    assert 2 * sum(BATCHES) <= 16


FLAGS_1000 = ProcessFlags("linear", None, None, 1000, "epsilon", "fixed_large", 1.0)
MORE_MIXING = {
    "mean": "m = ReduceMean<axes=[0]>(x) y = Sub(x, m)",
    "softmax": "y = Softmax<axis=0>(x)",
    "sum": "y = CumSum(x, zero)",
    "largest": "m = ReduceMax<keepdims=0>(x) y = Sub(x, m)",
    "timesteps": "m = ReduceMean<axes=[0]>(t) y = Add(x, m)",
    "folded batch": "f = Reshape(x, turned) m = ReduceMean<axes=[1]>(f) c = Sub(f, m) y = Reshape(c, image)",
    "random": "r = RandomNormalLike(x) y = Add(x, r)",
}


def small_network(body: str, batch: str = "N") -> onnx.ModelProto:
    return parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[{batch},2,4,4] x, float[{batch}] t) => (float[{batch},2,4,4] p)
    <int64 zero = {{0}}, int64[2] turned = {{32,-1}}, int64[4] image = {{-1,2,4,4}}, int64[3] behind = {{1,2,3}}> {{
      {body} u = Unsqueeze(t, behind) v = Sin(u) w = Add(y, v) p = Tanh(w) }}""")


@pytest.mark.parametrize("backend", ["onnxruntime", "auto"])
@pytest.mark.parametrize("body", MORE_MIXING)
def test_samples_that_see_each_other_are_refused(tmp_path, body, backend):
    onnx.save(small_network(MORE_MIXING[body]), str(tmp_path / "unet.onnx"))
    for _ in range(2):  # what failed is not kept
        with pytest.raises(VerificationError, match=r"depend on what else is in the batch"):
            Sampler(tmp_path / "unet.onnx", num_steps=3, flags=FLAGS_1000, backend=backend)


@pytest.mark.parametrize("batch", ["N", "1", "4"])
def test_samples_that_keep_apart_are_not(tmp_path, batch):
    onnx.save(small_network("m = ReduceMean<axes=[1,2,3]>(x) y = Sub(x, m)", batch), str(tmp_path / "unet.onnx"))
    for _ in range(2):
        images = Sampler(tmp_path / "unet.onnx", num_steps=3, flags=FLAGS_1000, backend="onnxruntime").sample(4)
        assert len(np.unique(images)) > 10
