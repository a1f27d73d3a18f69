"""`python -m train.fit_table`: a table from a folder, with every engine's numbers; refusals; a fit that is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime.engines.torch_checkpoint import load_checkpoint
from runtime.formats.table_file import TableFile
from runtime.formats.train_record import TrainRecord
from runtime.sample import main as sample
from runtime.sampler import Sampler
from tests.checkpoints import save_tiny_checkpoint
from train.datasets import DataRequest, load_data
from train.fit_table import run
from train.fitting.fit import Fit
from train.fitting.network import FittedNetwork

QUICK = ["--steps", "2", "--sampler", "ddim", "--spacing", "trailing", "--batch-size", "4", "--iterations", "4"]
OF_TEACHER = ["--objective", "teacher", "--pairs", "8", *QUICK]


@pytest.fixture(autouse=True)
def small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.fitting.figures._NUM_HELD_OUT", 16)
    monkeypatch.setattr("train.fitting.figures._NUM_IN_PRECISION", 4)
    monkeypatch.setattr("train.fitting.start._NUM_TRAJECTORIES", 8)
    monkeypatch.setattr("train.fitting.start._NUM_SCREENED", 8)
    monkeypatch.setattr("train.fitting.start._NUM_JUDGED", 8)
    monkeypatch.setattr("train.fitting.teacher.STEPS", 6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("fit") / "ckpt", num_train_timesteps=50)


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpt").symlink_to(checkpoint)
    np.savez("images.npz", np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8))
    return tmp_path


def fitted(capsys: Any, *words: str) -> dict[str, Any]:
    assert run(["--checkpoint", "ckpt", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_runtime_draws_what_was_fitted(folder: Path, capsys: Any) -> None:
    found = fitted(capsys, *OF_TEACHER, "--seed", "3")
    assert found["out"] == "table_2.json"
    assert (
        found["held_out"]["distance to the teacher"]["fitted"] < found["held_out"]["distance to the teacher"]["start"]
    )
    assert set(found["x_start_error"]) == {"bf16", "fp16", "int64 timesteps"}
    assert found["x_start_error"]["int64 timesteps"]["fitted"] == 0.0
    assert not Path("table_2.json.state").exists()
    file = TableFile.read("table_2.json")
    loaded = load_checkpoint("ckpt")
    assert file.sealed
    assert file.table.checkpoint_sha256 == loaded.sha256
    network = FittedNetwork.of(loaded, torch.device("cpu"), 3, None, None)
    for num in (1, 2, 5):
        x_t = network.noise(range(num)).numpy()
        drawn = Sampler("ckpt", sampler="table_2.json", batch_size=num).sample_float32(num, x_init=x_t)
        assert drawn.tobytes() == network.sample(file.table, range(num)).numpy().tobytes()


def test_another_checkpoint_refuses_it(folder: Path, capsys: Any) -> None:
    fitted(capsys, *OF_TEACHER, "--iterations", "1")
    save_tiny_checkpoint(Path("other"), num_train_timesteps=50, seed=1)
    words = ["--engine", "other", "--sampler", "table_2.json", "--num", "2"]
    assert sample([*words, "--out", "none"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "table of fitted_2: was fitted to checkpoint" in said
    assert sample([*words, "--force"]) == 0


def test_data_is_what_the_checkpoint_was_trained_on_or_is_named(folder: Path, capsys: Any) -> None:
    assert run(["--checkpoint", "ckpt", *QUICK]) == 2
    assert "does not say what it was trained on; name the data" in capsys.readouterr().err
    found = fitted(capsys, *QUICK, "--data", "images.npz", "--features", "both", "--iterations", "3")
    assert list(found["held_out"]) == ["energy distance to the data"]  # one of 30 is held out: no distance within
    assert (found["settings"]["features"], found["settings"]["iterations"]) == ("both", 3)


def test_data_that_changed_since_the_training_is_refused(folder: Path, capsys: Any) -> None:
    shutil.copytree("ckpt", "own")
    images, _ = load_data(DataRequest("images.npz"))

    def trained_on(**known: Any) -> None:
        config = {"data": {"data": "images.npz", "fingerprint": images.fingerprint} | known}
        TrainRecord(load_checkpoint("ckpt").process, {"config": config}).write(Path("own"))

    words = ["--checkpoint", "own", *QUICK, "--features", "pixels", "--iterations", "0"]
    trained_on()
    assert run(words) == 0
    for known, says in (
        ({"fingerprint": "0" * 64}, "images.npz: was changed since own was trained on it; name the data"),
        ({"held_out": "2"}, "own: what it was trained on: held_out is '2', expected a whole number; name the data"),
        ({"held_out": -1}, "own: what it was trained on: held_out is -1, expected at least 0; name the data"),
        ({"image_mode": "XX"}, "own: what it was trained on: image_mode is 'XX', expected L or RGB; name the data"),
    ):
        trained_on(**known)
        assert run(words) == 2
        assert says in capsys.readouterr().err
    assert run([*words, "--data", "images.npz"]) == 0


def test_a_stopped_fit_goes_on_to_the_same_table(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted(capsys, *OF_TEACHER, "--out", "whole.json")
    advance = Fit.advance

    def interrupted(fit: Fit) -> None:
        advance(fit)
        if fit.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Fit, "advance", interrupted)
    assert run(["--checkpoint", "ckpt", *OF_TEACHER, "--out", "cut.json", "--resume"]) == 130
    assert "stopped at step 2 of 4, its state is saved; --resume goes on" in capsys.readouterr().err
    assert not Path("cut.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("train.fitting.teacher.STEPS", 6)
    monkeypatch.setattr("train.fitting.figures._NUM_HELD_OUT", 16)
    monkeypatch.setattr("train.fitting.figures._NUM_IN_PRECISION", 4)
    assert run(["--checkpoint", "ckpt", *OF_TEACHER, "--out", "cut.json", "--resume", "--seed", "1"]) == 2
    assert "holds a fit with seed 0, asked for is 1; remove it, or start over" in capsys.readouterr().err
    assert fitted(capsys, *OF_TEACHER, "--out", "cut.json", "--resume") | {"out": ""} == whole | {"out": ""}
    assert Path("cut.json").read_bytes() == Path("whole.json").read_bytes()
    fitted(capsys, *OF_TEACHER, "--out", "cut.json", "--resume")  # done at once
    edited = {name: value for name, value in json.loads(Path("cut.json").read_text()).items() if name != "digest"}
    Path("cut.json").write_text(json.dumps(edited))
    assert run(["--checkpoint", "ckpt", *OF_TEACHER, "--out", "cut.json", "--resume"]) == 2
    assert "cut.json: without digest, so nothing tells whether it was changed; remove it" in capsys.readouterr().err
    torch.save({"format": 1, "identity": {}, "numbers": torch.arange(1000.0)}, "cut.json.state")
    assert run(["--checkpoint", "ckpt", *OF_TEACHER, "--out", "cut.json", "--resume"]) == 2
    assert "cut.json.state: is not the state of a fit; remove it" in capsys.readouterr().err
    state = Path("cut.json.state").read_bytes()
    Path("cut.json.state").write_bytes(state.replace(np.float32(500).tobytes(), np.float32(501).tobytes(), 1))
    assert run(["--checkpoint", "ckpt", *OF_TEACHER, "--out", "cut.json", "--resume"]) == 2
    assert "cut.json.state: was changed after it was written" in capsys.readouterr().err
    Path("cut.json.state").write_bytes(b"junk")
    assert run(["--checkpoint", "ckpt", *OF_TEACHER, "--out", "cut.json", "--resume"]) == 2
    assert (
        "cut.json.state: found 4 bytes that begin with b'junk', expected a file that torch.save"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("num_bytes", "words", "says"),
    [
        (20_000, [*QUICK, "--data", "images.npz"], "images.npz: 30 images: needs"),
        (20_000, OF_TEACHER, "the teacher's 60 states: needs"),
    ],
)
def test_what_does_not_fit_into_memory(
    num_bytes: int, words: list[str], says: str, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.system.available_bytes", lambda: num_bytes)
    monkeypatch.setattr("train.fitting.run.load_checkpoint", lambda folder, _: loaded)
    with monkeypatch.context() as enough:
        enough.setattr("commands.system.available_bytes", lambda: 2**30)
        loaded = load_checkpoint("ckpt")
    assert run(["--checkpoint", "ckpt", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_table_that_is_no_better_is_not_published(folder: Path, capsys: Any) -> None:
    assert run(["--checkpoint", "ckpt", *OF_TEACHER, "--learning-rate", "100", "--timesteps", "fixed"]) == 3
    assert "the fitted table is no better than ddim, trailing" in capsys.readouterr().err
    assert not Path("table_2.json").exists()


def test_a_network_that_overflows_in_fp16(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_precision = FittedNetwork.in_precision

    def overflowing(network: FittedNetwork, dtype: torch.dtype) -> FittedNetwork:
        found = in_precision(network, dtype)
        if dtype is torch.float16:
            for parameter in found.module.parameters():
                parameter *= 1e4
        return found

    monkeypatch.setattr(FittedNetwork, "in_precision", overflowing)
    assert run(["--checkpoint", "ckpt", *OF_TEACHER, "--iterations", "1"]) == 0
    assert "x_0 error in, fp16: not finite (its start not finite)" in capsys.readouterr().out
    assert TableFile.read("table_2.json").fitted.x_start_error["fp16"] == {"start": None, "fitted": None}


def test_gits_alone_needs_no_gradient(folder: Path, capsys: Any) -> None:
    found = fitted(capsys, *OF_TEACHER, "--spacing", "gits", "--iterations", "0")
    assert found["start"].startswith("ddim, gits")
    assert found["timesteps"][0] == 49


def test_a_network_that_takes_whole_timesteps_keeps_them(folder: Path, capsys: Any) -> None:
    save_tiny_checkpoint(
        Path("learned"), num_train_timesteps=50, unet={"time_embedding_type": "learned", "num_train_timesteps": 50}
    )
    words = ["--checkpoint", "learned", *OF_TEACHER, "--iterations", "1"]
    assert run([*words, "--timesteps", "free"]) == 2
    assert "takes whole timesteps alone" in capsys.readouterr().err
    assert run(words) == 0
    assert "note: learned: the network takes whole timesteps alone" in capsys.readouterr().err
    assert TableFile.read("table_2.json").table.timesteps.tolist() == [49, 24]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps", "0"], "--steps is 0, expected a whole number of at least 1"),
        (["--steps", "51", "--objective", "teacher"], "expected a whole number from 1 to 50"),
        (["--out", "table.txt"], "--out is table.txt, expected a name that ends in .json"),
        (["--learning-rate", "nan"], "--learning-rate is nan, expected a positive number"),
        (["--ball", "2", "--objective", "teacher"], "--ball is 2.0, expected at least 0 and less than 1"),
        (["--ball", "0.1"], "--ball does not apply to --objective data"),
        (["--objective", "teacher", "--features", "pixels"], "--features does not apply to --objective teacher"),
        (["--objective", "teacher", "--data", "digits"], "--data does not apply to --objective teacher"),
        (["--objective", "teacher", "--pairs", "8"], "--pairs is 8, expected at least --batch-size, which is 128"),
        (["--guidance", "2", "--objective", "teacher"], "guidance is given, but the network has no null class"),
        (["--data", "color.npz"], "images are (3, 8, 8), the network's samples (1, 8, 8)"),
        (["--checkpoint", "nowhere"], "nowhere: no such checkpoint folder"),
        (["--seed", "-1"], "--seed is -1"),
        (["--out", "t" * 226 + ".json"], ".json.state: no file can have this name"),
        (["--split", "train"], "flags of the data were given without --data; add it"),
        (["--threads", "100000000000"], "--threads is 100000000000, expected at most 1024"),
    ],
)
def test_refusals_are_one_line(words: list[str], says: str, folder: Path, capsys: Any) -> None:
    np.savez("color.npz", np.zeros((30, 8, 8, 3), dtype=np.uint8))
    assert run(["--checkpoint", "ckpt", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not list(Path().glob("table*"))
