"""An ONNX file that OpenVINO runs is what ONNX Runtime makes of it, or it is not run by OpenVINO."""

from __future__ import annotations

import builtins
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from commands.errors import DeviceUnavailableError, VerificationError
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.engines import agreement, onnx_opening
from runtime.engines.agreement import ON_GPU
from runtime.engines.onnx_device import OnnxDeviceEngine
from runtime.engines.onnx_file import OnnxFile
from runtime.engines.onnx_runtime import OnnxRuntimeEngine
from runtime.engines.opening import open_engine
from runtime.engines.verification import predict_with, relative_error
from runtime.formats.onnx_seal import sealed
from runtime.process_flags import ProcessFlags
from runtime.sample import main
from runtime.sampler import Sampler
from tests.gaussian import GaussianNetwork
from tests.runtime.engines.operator_variants import VARIANTS, model
from tests.runtime.engines.shared_device import kernels, memory

__all__ = ["kernels", "memory"]  # fixtures

FLAGS = ProcessFlags("linear", None, None, 100, "epsilon", "fixed_large", 1.0)
PROCESS = Process(SampleShape(2, 4, 4), NoiseSchedule.make("linear", 100), variance_type="fixed_large")
WRONG = VARIANTS['Resize half mode="linear", antialias=1']
SAME = VARIANTS["Clip"]

Save = Callable[[str], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("runtime.engines.onnx_opening._cpu_flags", lambda: frozenset({"avx2", "fma"}))
    return tmp_path / "cache" / "ddpm-rt"


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(body: str) -> Path:
        onnx.save(model(body), tmp_path / "foreign.onnx")
        return tmp_path / "foreign.onnx"

    return save


def check(path: Path) -> bool:
    """Whether the file runs; if so, as ONNX Runtime would run it, at a batch that no gate has seen."""
    with contextlib.suppress(InputError, VerificationError):
        engine = open_engine(path, threads=1, flags=FLAGS)
        x = np.random.default_rng(7).standard_normal((4, 3, 8, 8)).astype(np.float32)
        t = np.array([1, 33, 66, 98], np.float32)
        expected = predict_with(OnnxRuntimeEngine(path, threads=1, flags=FLAGS))(x, t)
        assert relative_error(predict_with(engine)(x, t), expected) < 2e-4, engine.name
        return True
    return False


# One of each kind, and those that OpenVINO 2026.4 computes otherwise.
QUICK = [
    'Resize half mode="cubic", antialias=1',
    'Resize odd half_pixel mode="cubic", exclude_outside=1',
    "Resize not_larger",
    'Resize half half_pixel_symmetric mode="linear"',
    "AveragePool<count_include_pad=1, 1 [1,1,1,1]",
    "LpPool<1 [0,0,0,0]",
    "GridSample cubic reflection 0",
    "LayerNormalization -1 small",
    "Pad wrap wide",
    "Mod fmod",
    "Round half",
    "CumSum 1 1",
    "TopK ties",
    "Gelu tanh",
    "Trilu lower 1",
    "ScatterElements add",
    "Reshape folded",
]


@pytest.mark.parametrize("name", QUICK)
def test_what_runs_is_what_onnx_runtime_runs(name: str, save: Save) -> None:
    check(save(VARIANTS[name]))


@pytest.mark.sweep
@pytest.mark.parametrize("kind", sorted({name.split()[0].partition("<")[0] for name in VARIANTS}))
def test_every_variant(kind: str, save: Save) -> None:
    names = [name for name in VARIANTS if name.split()[0].partition("<")[0] == kind]
    for name in names:
        check(save(VARIANTS[name]))


def test_auto_takes_onnx_runtime_and_says_so(save: Save, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(WRONG)
    for words in ("first use on", "OpenVINO"):  # the second time it is known
        sampler = Sampler(path, num_steps=4, flags=FLAGS)
        said = capsys.readouterr().err
        assert words in said
        assert "is off: predictions at most" in said
        assert "onnx's reference evaluator agrees with ONNX Runtime" in said
        assert sampler.engine.name.startswith("ONNX Runtime")
    assert "first use" not in said
    assert len(list((cache / "compared").iterdir())) == 1
    expected = Sampler(path, num_steps=4, flags=FLAGS, backend="onnxruntime").sample(3)
    np.testing.assert_array_equal(sampler.sample(3), expected)


def test_openvino_by_name_is_refused_with_the_table(save: Save) -> None:
    path = save(WRONG)
    for _ in range(2):
        with pytest.raises(VerificationError, match=r"is off.*give `backend=onnxruntime`\n +t  relative error"):
            open_engine(path, flags=FLAGS, backend="openvino")


def test_the_command(save: Save, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(WRONG)
    monkeypatch.chdir(path.parent)
    flags = ["--beta-schedule", "linear", "--num-train-timesteps", "100", "--prediction-type", "epsilon"]
    flags += ["--variance-type", "fixed_large", "--clip-sample", "1", "--num", "2", "--steps", "2"]
    arguments = ["--engine", path.name, *flags]
    assert main([*arguments, "--backend", "openvino", "--out", "a"]) == 3
    assert not Path("a").exists()
    assert main([*arguments, "--out", "b"]) == 0
    said = capsys.readouterr().err
    assert "ONNX Runtime runs it" in said
    assert "because OpenVINO does not run it or is off" in said


def test_a_file_that_agrees_is_compared_once(save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(SAME)
    assert open_engine(path, flags=FLAGS).name.startswith("OpenVINO")
    assert "compared: predictions at most" in capsys.readouterr().err
    assert open_engine(path, flags=FLAGS).name.startswith("OpenVINO")
    assert capsys.readouterr().err == ""
    # Another network, another process, another version: each is compared anew.
    onnx.save(model(SAME.replace("neg", "zero")), path)
    open_engine(path, flags=FLAGS)
    assert "first use" in capsys.readouterr().err
    open_engine(path, flags=ProcessFlags("linear", None, None, 50, "epsilon", "fixed_large", 1.0))
    assert "first use" in capsys.readouterr().err


def test_another_version_is_compared_anew(
    save: Save, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(SAME)
    open_engine(path, flags=FLAGS)
    capsys.readouterr()
    monkeypatch.setattr(agreement, "_onnx_runtime_version", lambda: "9.9")
    open_engine(path, flags=FLAGS)
    assert "first use" in capsys.readouterr().err


def test_a_record_that_was_edited_is_not_believed(save: Save, cache: Path) -> None:
    path = save(WRONG)
    open_engine(path, flags=FLAGS)
    (record,) = (cache / "compared").iterdir()
    record.write_text(record.read_text().replace('"passed": false', '"passed": true'))
    assert open_engine(path, flags=FLAGS).name.startswith("ONNX Runtime")


def test_without_a_cache_it_is_compared_each_time(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        open_engine(save(SAME), flags=FLAGS)
        assert "cannot be written, so the next run compares again" in capsys.readouterr().err


def test_what_openvino_cannot_read_onnx_runtime_runs(save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(VARIANTS['Resize half half_pixel_symmetric mode="linear"'])
    assert open_engine(path, flags=FLAGS).name.startswith("ONNX Runtime")
    assert "OpenVINO does not run it" in capsys.readouterr().err
    with pytest.raises(InputError, match="OpenVINO cannot read it"):
        open_engine(path, flags=FLAGS, backend="openvino")


def test_a_network_that_mixes_its_batch(save: Save) -> None:
    """The mean over all samples: equal for both backends, and still no network of single samples."""
    with pytest.raises(VerificationError, match="depend on what else is in the batch"):
        open_engine(save("r = ReduceMean(m, first) y = Sub(m, r)"), flags=FLAGS)


def test_predictions_that_are_not_finite(save: Save) -> None:
    with pytest.raises(VerificationError, match="are not finite on states of its own chains"):
        open_engine(save("y = Sqrt(m)"), flags=FLAGS)


def test_where_onnx_itself_speaks_against_onnx_runtime(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for LpPool with ceil_mode in ONNX Runtime 1.32; here by an evaluator that is wrong."""
    path = save(WRONG)
    with monkeypatch.context() as patch:
        patch.setattr(agreement.ReferenceEngine, "_bind", lambda self, x, t, p: lambda: p.fill(0.0))
        with pytest.raises(VerificationError, match="agrees with neither .*`backend=onnxruntime`"):
            open_engine(path, flags=FLAGS)
        with pytest.raises(VerificationError, match="agrees with neither"):
            open_engine(path, flags=FLAGS)
    assert open_engine(path, flags=FLAGS, backend="onnxruntime").name.startswith("ONNX Runtime")


def test_without_a_third_opinion(
    save: Save, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(agreement, "MAX_BYTES", 10)
    assert open_engine(save(WRONG), flags=FLAGS).name.startswith("ONNX Runtime")
    assert "was not asked (the file is larger" in capsys.readouterr().err


def block(monkeypatch: pytest.MonkeyPatch, *blocked: str) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: object) -> object:
        if name in blocked:
            raise ModuleNotFoundError(f"No module named {blocked[0]!r}", name=blocked[0])
        return real(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)


def test_without_onnx(save: Save, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(WRONG)
    path.write_bytes(sealed(path.read_bytes(), "fp32"))  # one of ours, which needs no onnx to be read
    block(monkeypatch, "onnx", "onnx.reference")
    assert open_engine(path, flags=FLAGS).name.startswith("ONNX Runtime")
    assert "was not asked (onnx is not installed)" in capsys.readouterr().err


def test_without_onnx_runtime_openvino_runs_no_onnx_file(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(SAME)
    block(monkeypatch, "runtime.engines.agreement")
    for backend in ("auto", "openvino"):
        with pytest.raises(DeviceUnavailableError, match=r"that was not compared with ONNX Runtime.*ddpm-rt\[cpu\]"):
            open_engine(path, flags=FLAGS, backend=backend)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_fixed_batch(batch: int, tmp_path: Path) -> None:
    path = GaussianNetwork(PROCESS, 0.1, 0.4).save_onnx(tmp_path / "unet.onnx")
    fixed = onnx.load(path)
    for entry in (*fixed.graph.input, *fixed.graph.output):
        entry.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(fixed, path)
    assert open_engine(path).name.startswith("OpenVINO")


def test_on_a_gpu(
    tmp_path: Path, memory: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ONNX Runtime's CPU provider in the GPU's place."""
    path = GaussianNetwork(PROCESS, 0.1, 0.4).save_onnx(tmp_path / "unet.onnx")

    class Device(OnnxDeviceEngine):
        off = 0.0

        def __init__(self, path: Path, flags: ProcessFlags | None, file: OnnxFile) -> None:
            super().__init__(path, flags, memory=memory, device="cpu", file=file)  # type: ignore[arg-type]

        def _bind(self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray) -> Callable[[], None]:
            call = super()._bind(x, t, prediction)

            def off() -> None:
                call()
                prediction[...] += self.off

            return off

    monkeypatch.setattr("runtime.engines.onnx_device.OnnxDeviceEngine", Device)
    assert isinstance(open_engine(path, device="cuda", backend="onnxruntime"), Device)
    assert "compared: predictions at most" in capsys.readouterr().err
    monkeypatch.setitem(ON_GPU, "fp32", 2e-3)
    Device.off = 0.1
    with pytest.raises(VerificationError, match="is off.*give `device=cpu`"):
        open_engine(path, device="cuda", backend="onnxruntime")

    def cannot(*arguments: object) -> None:
        raise DeviceUnavailableError("no bf16 convolutions on the CPU")

    monkeypatch.setattr(onnx_opening, "_open_onnx_runtime", cannot)
    monkeypatch.setitem(ON_GPU, "fp32", 3e-3)
    capsys.readouterr()
    assert isinstance(open_engine(path, device="cuda", backend="onnxruntime"), Device)
    assert "was compared with nothing (no bf16" in capsys.readouterr().err


def test_nothing_is_left_but_the_record(save: Save, cache: Path) -> None:
    open_engine(save(SAME), flags=FLAGS)
    assert sorted(os.listdir(cache)) == ["compared", "models"]
