"""Other projects' checkpoints as diffusers folders: what diffusers loads is the network that was read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline

from export import convert
from export.checkpoints.checkpoint import ForeignCheckpoint
from export.checkpoints.registry import read_foreign
from runtime.engines.torch_checkpoint import load_checkpoint
from tests.export.checkpoints.ho_network import HoNetwork
from tests.export.checkpoints.openai_networks import FLAGS, guided_network, save
from tests.export.checkpoints.relative_errors import relative_errors
from tests.export.checkpoints.test_ho import FLAGS as HO_FLAGS


def arguments(flags: dict[str, Any]) -> list[str]:
    return ["--allow-pickle", *(f"--{name}={value}" for name, value in flags.items())]


def test_a_guided_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, folder = guided_network(), tmp_path / "converted"
    path = save(network, tmp_path / "ema_0.9999_100.pt")
    assert convert.main([str(path), "--out", str(folder), "--json", *arguments(FLAGS)]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["folder"], report["worst"]) == (str(folder), 0.0)
    assert printed.err.splitlines() == [
        f"reading {path}",
        f"{path}: predicts epsilon (default of --predict_xstart), noise linear, T = 1000, beta 0.0001 to 0.02 "
        "(--noise_schedule), variance learned_range (6 output channels), x_start clipped to ±1 (default of the "
        "project)",
    ]
    modes = {path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
    assert modes == {(folder / "model_index.json").stat().st_mode}
    unet = DDPMPipeline.from_pretrained(folder).unet.eval()
    errors = relative_errors(network, lambda x, t: unet(x, t, return_dict=False)[0], (3, 16, 16), 1000)
    assert max(errors) <= 1e-5
    written = load_checkpoint(folder).process
    assert (written.timestep_spacing, written.variance_type) == ("linspace", "learned_range")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["converted", "ema_0.9999_100.pt"]


def test_a_network_of_ho(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = HoNetwork()
    torch.save(network.tensors, "model-790000.ckpt")
    report = convert.convert("model-790000.ckpt", flags=HO_FLAGS, allow_pickle=True)
    assert report["folder"] == "model-790000"
    read = read_foreign(Path("model-790000.ckpt"), HO_FLAGS, allow_pickle=True)
    x, t = np.ones((2, 3, 16, 16), np.float32), np.array([3, 500], np.float32)
    assert np.array_equal(load_checkpoint("model-790000").predict(x, t), read.predict(x, t))


@pytest.mark.parametrize(
    ("network", "flags", "says"),
    [
        ({"attention_resolutions": (1, 2)}, {}, "its attention heads have 8 and 16 channels"),
        ({"channel_mult": (0.5, 1), "model_channels": 64}, {}, "embedded in 64 channels and its first level has 32"),
        ({}, {"diffusion_steps": 4000, "rescale_timesteps": True}, "trained on t · 1000/T"),
        ({}, {"num_heads": 5}, "--num_heads is 5"),
    ],
)
def test_what_diffusers_does_not_express(
    network: dict[str, Any],
    flags: dict[str, Any],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = save(guided_network(**network), tmp_path / "model.pt")
    assert convert.main([str(path), "--out", str(tmp_path / "out"), *arguments(FLAGS | flags)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert says in message
    assert ("python -m export.to_onnx --checkpoint" in message) == ("num_heads" not in flags)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, there = save(guided_network(), tmp_path / "model.pt"), tmp_path / "there"
    there.mkdir()
    (there / "mine.txt").write_text("kept")
    for given, says in (
        ([str(there)], "is a folder, expected the file of another project"),
        ([str(tmp_path / "none.pt")], "no such file"),
        ([str(path)], "give --allow-pickle"),
        ([str(path), "--out", str(there), *arguments(FLAGS)], "there: exists already; remove it, or name another"),
    ):
        assert convert.main(given) == 2
        message = capsys.readouterr().err
        assert says in message
        assert message.count("\n") == 1
    assert [entry.name for entry in there.iterdir()] == ["mine.txt"]


def test_nothing_is_written_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(guided_network(), tmp_path / "model.pt")
    original = convert.TOLERANCE
    monkeypatch.setattr(convert, "TOLERANCE", -1.0)
    assert convert.main([str(path), "--out", str(tmp_path / "out"), *arguments(FLAGS)]) == 3
    assert "nothing was written" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]
    assert original <= 1e-6


def test_a_folder_that_is_made_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, mine = save(guided_network(), tmp_path / "model.pt"), tmp_path / "out" / "mine.txt"

    def write(*_: object) -> float:
        mine.parent.mkdir()
        mine.touch()
        return 0.0

    monkeypatch.setattr(convert, "_write_checked", write)
    assert convert.main([str(path), "--out", str(mine.parent), *arguments(FLAGS)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert mine.exists()


def test_every_batch_size_is_compared_and_nan_is_no_agreement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, sizes, predict = save(guided_network(), tmp_path / "model.pt"), list[int](), ForeignCheckpoint.predict

    def counted(self: ForeignCheckpoint, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        found = predict(self, x, t)
        return found * np.nan if len(sizes) == 2 else found

    monkeypatch.setattr(ForeignCheckpoint, "predict", counted)
    assert convert.main([str(path), "--out", str(tmp_path / "out"), *arguments(FLAGS)]) == 3
    assert "differs by nan" in capsys.readouterr().err
    assert sizes == [1, 2, 5, 1, 2, 5]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]
