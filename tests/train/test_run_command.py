"""The command line: exit codes, one-line errors, JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process
from runtime.engines.checkpoint_folder import read_checkpoint_folder
from train.learner import Learner
from train.run import run

SHORT = ["--steps", "2", "--batch-size", "4", "--num-samples", "0", "--device", "cpu"]


def test_trains_and_reports_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run([*SHORT, "--out", str(out), "--json", "--seed", "7"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["out"] == str(out)
    assert report["steps"] == 2
    assert report["samples"] is None
    assert "training on digits: 1,545 images of 1×8×8" in printed.err
    assert "train digits: 2 of 2 steps, " in printed.err
    described = json.loads((out / "train.json").read_text())
    assert described["config"]["seed"] == 7
    assert described["process"]["sample"] == {"channels": 1, "height": 8, "width": 8, "levels": 17}
    assert described["command"].startswith("python -m train.run --steps 2")
    assert report["held_out_loss"] == described["held_out_loss"]

    # The same again replaces; --resume finds it complete; another configuration is refused.
    assert run([*SHORT, "--out", str(out), "--seed", "7"]) == 0
    assert run([*SHORT, "--out", str(out), "--seed", "7", "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["already_complete"] is True
    assert run([*SHORT, "--out", str(out), "--seed", "8"]) == 2
    assert "holds a run with seed 7, asked for is 8" in capsys.readouterr().err
    assert json.loads((out / "train.json").read_text())["config"]["seed"] == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "--steps is 0, expected a whole number of at least 1"),
        (["--steps", "-5"], "--steps is -5, expected a whole number of at least 1"),
        (["--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["--batch-size", "0"], "--batch-size is 0, expected"),
        (["--learning-rate", "0"], "--learning-rate is 0.0, expected a positive number"),
        (["--learning-rate", "nan"], "--learning-rate is nan, expected a positive number"),
        (["--ema-decay", "1"], "--ema-decay is 1.0, expected at least 0 and less than 1"),
        (["--seed", "-1"], "--seed is -1, expected"),
        (["--seed", str(2**64)], "expected 0 to 2^64 - 1"),
        (["--num-samples", "-1"], "--num-samples is -1, expected"),
        (["--save-seconds", "nan"], "--save-seconds is nan, expected at least 0"),
        (["--resume", "--overwrite"], "--resume and --overwrite were both given"),
        (["--preset", "celebahq256"], "preset celebahq256 has no data of its own"),
        (["--prediction", "noise"], "argument --prediction: invalid choice: 'noise'"),
        (["--zero-terminal-snr"], "the schedule ends at alpha_bar = 0, where epsilon says nothing about x_start"),
        (
            ["--zero-terminal-snr", "--prediction", "v_prediction", "--learn-schedule"],
            "leave out --zero-terminal-snr, or --learn-schedule",
        ),
        (["--learn-schedule", "--num-train-timesteps", "2"], "give --num-train-timesteps 3 or more"),
        (["--num-train-timesteps", "0"], "--num-train-timesteps is 0, expected a whole number of at least 1"),
        (["--min-snr-gamma", "3"], "--min-snr-gamma does not apply to --loss simple; add --loss min-snr"),
        (["--loss", "min-snr", "--min-snr-gamma", "0"], "--min-snr-gamma is 0.0, expected a positive number"),
        (["--beta-schedule", "explicit"], "--beta-schedule explicit needs the betas"),
        (["--betas", "nowhere.json"], "--betas nowhere.json: no such file; give a list"),
        (["--beta-schedule", "squaredcos_cap_v2", "--beta-end", "0.1"], "--beta-end does not apply to the schedule"),
        (["--beta-start", "2"], "beta_start is 2.0, expected a number between 0 and 1"),
        (["--preset", "imagenet"], "argument --preset: invalid choice: 'imagenet'"),
        (["--preset", "mnist", "--image-size", "32"], "--image-size does not apply to mnist"),
        (["--preset", "cifar10", "--data", "digits", "--image-size", "32"], "--image-size does not apply to digits"),
        (["--preset", "celebahq256", "--data", "digits"], "images are 8×8 pixels, the network of preset celebahq256"),
    ],
)
def test_bad_input(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = run(flags)
    except SystemExit as left:  # argparse's own errors
        code = int(str(left.code))
    printed = capsys.readouterr()
    assert code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("0.1", [], "found no list of numbers"),
        ('["a"]', [], "found no list of numbers"),
        ("[0.1, 0.2", [], "not JSON"),
        ("[0.1, 1.5]", [], "beta[1] is 1.5, expected 0 < beta < 1"),
        ("[0.1, 0.2]", ["--num-train-timesteps", "3"], "num_train_timesteps is 3, but there are 2 betas"),
        ("[0.1, 0.2]", ["--beta-schedule", "linear"], "--betas does not apply to --beta-schedule linear"),
    ],
)
def test_bad_betas(
    content: str, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "betas.json"
    path.write_text(content)
    assert run(["--betas", str(path), "--out", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def check_diffusers(folder: Path, process: Process) -> None:
    """diffusers loads every folder, and samples from all but those of a score."""
    from diffusers import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(pipeline.scheduler.betas.numpy(), process.schedule.betas, rtol=1e-6)
    if process.prediction_type == "score":
        with pytest.raises(ValueError, match="prediction_type given as score"):
            pipeline(batch_size=1, num_inference_steps=2)
    else:
        assert np.isfinite(pipeline(batch_size=1, num_inference_steps=20, output_type="np").images).all()


@pytest.mark.parametrize(
    ("flags", "process"),
    [
        (["--prediction", "sample", "--beta-schedule", "scaled_linear"], {"prediction_type": "sample"}),
        (
            ["--prediction", "v_prediction", "--zero-terminal-snr", "--loss", "min-snr", "--min-snr-gamma", "3"],
            {"prediction_type": "v_prediction"},
        ),
        (["--prediction", "score", "--loss", "min-snr", "--beta-schedule", "sigmoid"], {"prediction_type": "score"}),
        (["--variance", "learned_range", "--beta-schedule", "squaredcos_cap_v2"], {"variance_type": "learned_range"}),
        (
            ["--variance", "learned_range", "--loss", "vlb", "--learn-schedule", "--steps", "30"],
            {"variance_type": "learned_range"},
        ),
        (["--loss", "vlb", "--variance", "fixed_small", "--betas", "BETAS"], {"variance_type": "fixed_small"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_trained(
    flags: list[str], process: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Digits for a few steps: every choice reaches the folder, and samples."""
    betas = [0.01 + 0.02 * t for t in range(20)]
    (tmp_path / "betas.json").write_text(json.dumps(betas))
    flags = [str(tmp_path / "betas.json") if flag == "BETAS" else flag for flag in flags]
    out = tmp_path / "run"
    assert run([*SHORT, "--num-train-timesteps", "20", *flags, "--num-samples", "4", "--out", str(out)]) == 0
    described = json.loads((out / "train.json").read_text())
    assert np.isfinite([described["final_loss"], described["held_out_loss"]]).all()
    assert (out / "samples.png").is_file()
    folder = read_checkpoint_folder(out)  # all that train.json and diffusers' files both say agrees
    assert process.items() <= folder.process.to_json().items()
    check_diffusers(out, folder.process)
    schedule = folder.process.schedule
    assert schedule.num_train_timesteps == 20
    if "--zero-terminal-snr" in flags:
        assert schedule.alpha_bar[-1] == 0.0
    if "--betas" in flags:
        assert schedule.betas.tolist() == betas
    if "--learn-schedule" in flags:
        given = NoiseSchedule.make("linear", 20)
        assert schedule.kind == "explicit"
        np.testing.assert_allclose(schedule.log_snr[[0, -1]], given.log_snr[[0, -1]], rtol=1e-9)
        assert abs(schedule.log_snr[10] - given.log_snr[10]) > 0.1
        assert set(described["bound_relative_std"]) == {"given", "learned"}


def test_a_gpu_where_none_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(["--device", "cuda"]) == 4
    assert run(["--mixed-precision", "fp16"]) == 4
    first, second = capsys.readouterr().err.splitlines()
    assert "--device cuda: torch finds no CUDA GPU here; use --device cpu" in first
    assert "--mixed-precision fp16 needs a CUDA GPU" in second


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run([*SHORT, "--out", str(tmp_path / "file" / "run")]) == 2
    assert "cannot be written" in capsys.readouterr().err.splitlines()[-1]


def test_bf16_trains(tmp_path: Path) -> None:
    assert run([*SHORT, "--out", str(tmp_path / "run"), "--mixed-precision", "bf16"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(lines[-1]["loss"])


def test_ctrl_c_and_the_command_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    update = Learner.update

    def interrupted(self: Learner, step: int, batch: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return update(self, step, batch)

    flags = [*SHORT, "--steps", "3", "--out", out]
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", interrupted)
        assert run([*flags, "--overwrite"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert "stopped at step 1 of 3, its state is saved; go on with: " in last
    named = last.partition("go on with: python -m train.run ")[2].split()
    assert named == [*flags, "--resume"]
    assert run(flags) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert run(named) == 0
    assert "from step 1" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    flags = ["--steps", "3", "--batch-size", "16", "--num-samples", "0", "--device", "cpu", "--learning-rate", "0.05"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "train.run",
    ]
    two = subprocess.run(
        [*command, *flags, "--out", str(tmp_path / "two")], capture_output=True, text=True, timeout=240, check=False
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("trained, 3 steps") == 1  # only the main process reports
    assert run([*flags, "--out", str(tmp_path / "one")]) == 0
    weights = [load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors") for name in ("one", "two")]
    one, other = (np.concatenate([part[name].ravel() for name in sorted(part)]) for part in weights)
    assert np.linalg.norm(one - other) / np.linalg.norm(one) < 1e-5
    losses = [json.loads((tmp_path / name / "train.json").read_text())["final_loss"] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
