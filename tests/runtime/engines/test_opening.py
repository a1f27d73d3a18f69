"""Adding a backend is a class and one entry: everything else finds it there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from commands.errors import DeviceUnavailableError
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.engines import opening
from runtime.engines.interface import Engine
from runtime.engines.onnx_file import OnnxFile, read_onnx
from runtime.engines.opening import BACKENDS, Backend, EngineOptions, find_backend, open_engine
from runtime.sample import main
from runtime.sampler import Sampler
from tests.gaussian import GaussianNetwork

PROCESS = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 50), variance_type="fixed_large")


class ToyEngine(Engine):
    """A prediction that is a multiple of x; the file holds the factor."""

    name, precision, sha256 = "a toy", "fp32", "0" * 64
    process = PROCESS

    def __init__(self, path: Path, options: EngineOptions) -> None:
        self.factor, self.options = np.float32(json.loads(path.read_text())), options

    def _bind(self, x: np.ndarray, t: np.ndarray, prediction: np.ndarray) -> Callable[[], None]:
        def call() -> None:
            np.multiply(x, self.factor, out=prediction)

        return call


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    entry = Backend("toy", ".toy", ("cpu",), ToyEngine, "Toys", "toys")
    monkeypatch.setattr(opening, "BACKENDS", [*BACKENDS, entry])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unet.toy").write_text("0.5")
    return tmp_path / "unet.toy"


def test_a_new_backend_samples(toy: Path) -> None:
    sampler = Sampler(toy, num_steps=4, threads=1)
    assert sampler.engine.name == "a toy"
    assert sampler.engine.options.threads == 1  # type: ignore[attr-defined]
    one_by_one = np.concatenate([sampler.sample_float32(1, start=start) for start in range(3)])
    np.testing.assert_array_equal(sampler.sample_float32(3), one_by_one)


def test_the_command_runs_it_and_refuses_what_is_not_for_it(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--engine", toy.name, "--num", "2", "--steps", "2", "--out"]
    assert main([*words, "a"]) == 0
    for given, says in (
        (["--device", "cuda"], "unet.toy: runs on the CPU, but --device is cuda; give --device cpu"),
        (["--backend", "openvino"], "--backend openvino is for an ONNX file, but the engine is unet.toy"),
        (["--precision", "bf16"], "--precision bf16 is for a checkpoint folder, but the engine is unet.toy"),
        (["--output-name", "p"], "--output-name is for an ONNX file, but the engine is unet.toy"),
    ):
        assert main([*words, "b", *given]) == 2
        assert says in capsys.readouterr().err
        assert not Path("b").exists()


def test_what_is_not_installed_is_named(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(path: Path, options: EngineOptions) -> Engine:
        raise ModuleNotFoundError("No module named 'blocks'", name="blocks")

    monkeypatch.setattr(opening, "BACKENDS", [Backend("toy", ".toy", ("cpu",), without, "Toys", "toys")])
    with pytest.raises(DeviceUnavailableError, match=r"needs Toys, and the module 'blocks'.*ddpm-rt\[toys\]"):
        open_engine(toy)


def test_every_entry_is_found_by_its_files(tmp_path: Path) -> None:
    assert len({backend.suffix for backend in BACKENDS}) == len({backend.name for backend in BACKENDS}) == len(BACKENDS)
    for backend in BACKENDS:
        path = tmp_path if backend.suffix == opening.FOLDER else tmp_path / f"unet{backend.suffix}"
        assert find_backend(path) is backend
    (tmp_path / "unet.onnx").mkdir()  # a folder, whatever its name
    assert find_backend(tmp_path / "unet.onnx") == find_backend(tmp_path)
    assert find_backend(tmp_path / "unet.bin") is None


def test_options_by_name_and_as_one(toy: Path) -> None:
    options = EngineOptions(threads=2)
    assert open_engine(toy, options, allow_pickle=True).options == EngineOptions("cpu", 2, allow_pickle=True)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="thread_count"):
        open_engine(toy, thread_count=2)
    with pytest.raises(InputError, match="device is 'tpu', expected one of cpu, cuda"):
        open_engine(toy, device="tpu")


def test_what_an_engine_need_not_say(toy: Path) -> None:
    engine = open_engine(toy)
    assert (engine.batch_range(), engine.fixed_batch, engine.padded_batch(7)) == ((1, None), None, 7)
    assert (engine.shares_timestep, engine.chosen_because) == (False, "")


@pytest.mark.parametrize(("num", "way_out"), [(1, "found 1; give `batch_size=2`"), (5, "found 5; give `batch_size=4`")])
def test_a_batch_that_a_backend_does_not_take(
    toy: Path, monkeypatch: pytest.MonkeyPatch, num: int, way_out: str
) -> None:
    """Checked once for all of them, with the buffers."""
    monkeypatch.setattr(ToyEngine, "batch_range", lambda self: (2, 4))
    engine, x, t = open_engine(toy), np.zeros((num, 1, 4, 4), np.float32), np.zeros(num, np.float32)
    with pytest.raises(InputError, match=f"takes batches of 2 to 4, {way_out}"):
        engine.bind(x, t, x.copy())
    for wrong in (
        (x[:, :, :3], t, x),
        (x, t[:, None], x),
        (x, t, x.astype(np.float64)),
        (x, t, np.tile(x, (1, 2, 1, 1))),
    ):
        with pytest.raises(InputError, match=r"expected float32 \(.*, C-contiguous"):
            engine.bind(*wrong)


@pytest.mark.parametrize("backend", ["auto", "openvino", "onnxruntime"])
def test_an_onnx_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    path, asked = GaussianNetwork(PROCESS, 0.1, 0.4).save_onnx(tmp_path / "unet.onnx"), []

    def counted(path: Path) -> OnnxFile:
        asked.append(path)
        return read_onnx(path)

    for module in ("onnx_opening", "onnx_runtime", "openvino_cpu"):
        monkeypatch.setattr(f"runtime.engines.{module}.read_onnx", counted)
    assert open_engine(path, backend=backend).precision == "fp32"
    assert asked == [path]
