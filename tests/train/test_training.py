"""Whole runs of a tiny network: resuming, stopping, publishing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands.errors import StoppedError
from diffusion.diffusers_config import process_from_diffusers
from diffusion.errors import InputError
from diffusion.process import Process
from train.datasets import DataRequest, load_data
from train.learner import Learner
from train.presets import LoggingConfig
from train.publication import WEIGHTS, hash_file
from train.schedule_learner import LogSnrNetwork
from train.training import Run, train

MakeRun = Callable[..., Run]


def read_weights(folder: Path) -> bytes:
    return (folder / "unet" / WEIGHTS).read_bytes()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["images_per_second"], line["digest"]  # which is of the seconds too
    return lines


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, number: signal.Signals = signal.SIGINT) -> None:
    """Send this process a signal during update `step`."""
    update = Learner.update

    def interrupted(self: Learner, at: int, batch: Any) -> Any:
        if at == step:
            os.kill(os.getpid(), number)
        return update(self, at, batch)

    monkeypatch.setattr(Learner, "update", interrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_ends_with_the_same_bits(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    train(make_run(out=tmp_path / "whole"))
    parts = tmp_path / "parts"
    with monkeypatch.context() as patch:
        stop_at(5, patch, number)
        with pytest.raises(StoppedError, match="stopped at step 6 of 9, .* python -m train.run --resume"):
            train(make_run(out=parts))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (parts / "train.json").exists()
    torch.manual_seed(99)  # nothing may hang on the global generator
    # Batches made ahead by threads are the same batches.
    report = train(make_run(out=parts, resume=True, logging_config=LoggingConfig(4, 8, 1e9, num_workers=2)))
    assert report is not None
    assert not report["already_complete"]
    assert read_weights(parts) == read_weights(tmp_path / "whole")
    assert read_metrics(parts) == read_metrics(tmp_path / "whole")


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_type": "sample", "loss": "min-snr"},
        {"prediction_type": "v_prediction", "variance_type": "learned_range", "zero_terminal_snr": True},
        {"prediction_type": "score", "loss": "vlb"},
        {"learn_schedule": True},
        {"learn_schedule": True, "loss": "vlb", "variance_type": "learned_range", "accumulate": 3},
    ],
    ids=str,
)
def test_every_objective_ends_with_the_same_bits_when_interrupted(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    # Changes of the schedule at steps 3 and 6: one before and one after the interruption, which falls between them.
    monkeypatch.setattr("train.schedule_learner.CHANGE_EVERY", 3)
    monkeypatch.setattr("train.schedule_learner.LEARN_UNTIL", 1.0)
    config = dataclasses.replace(make_run().config, **changes)
    train(make_run(out=tmp_path / "whole", config=config))
    parts = tmp_path / "parts"
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        with pytest.raises(StoppedError):
            train(make_run(out=parts, config=config))
    train(make_run(out=parts, config=config, resume=True))
    assert read_weights(parts) == read_weights(tmp_path / "whole")
    assert read_metrics(parts) == read_metrics(tmp_path / "whole")
    described = [json.loads((folder / "train.json").read_text()) for folder in (parts, tmp_path / "whole")]
    assert described[0]["process"] == described[1]["process"]
    if "learn_schedule" in changes:
        state = torch.load(parts / "state" / "state.pt", weights_only=True)
        assert state["schedule"]["optimizer"]["state"][0]["step"] == 30.0  # three changes of ten steps each
        given = config.schedule().log_snr
        learned = LogSnrNetwork(given[0], given[-1], len(given))
        learned.load_state_dict(state["schedule"]["network"])
        assert Process.from_json(described[0]["process"]).schedule == learned.schedule()


def test_a_killed_run_goes_on_from_its_last_periodic_save(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make_run(out=tmp_path / "whole"))
    update = Learner.update

    def killed(self: Learner, at: int, batch: Any) -> Any:
        if at == 7:
            raise MemoryError
        return update(self, at, batch)

    often = LoggingConfig(log_every=1, evaluate_every=8, save_seconds=0.0, num_workers=0)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", killed)
        with pytest.raises(MemoryError):
            train(make_run(out=tmp_path / "run", logging_config=often))
    with (tmp_path / "run" / "state" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 8, "loss": 1.0}\n{"ste')  # logged after the save, and cut off
    train(make_run(resume=True, logging_config=often))
    assert read_weights(tmp_path / "run") == read_weights(tmp_path / "whole")
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, 10))


def test_a_run_that_is_killed_at_a_random_step_goes_on_from_either_of_its_last_two_states(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_run(out=tmp_path / "whole"))
    update, step = Learner.update, int(np.random.default_rng().integers(2, 9))

    class Killed(BaseException):
        """As a signal that cannot be caught."""

    def killed(self: Learner, at: int, batch: Any) -> Any:
        if at == step:
            raise Killed
        return update(self, at, batch)

    often = LoggingConfig(log_every=1, evaluate_every=8, save_seconds=0.0, num_workers=0)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", killed)
        with pytest.raises(Killed):
            train(make_run(logging_config=often))
    state = tmp_path / "run" / "state"
    for damage in (None, b"", b"PK\x03\x04 cut"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        latest = tmp_path / "copy" / "state" / "state.pt"
        if damage is not None:
            latest.write_bytes(damage)
        capsys.readouterr()
        train(make_run(out=tmp_path / "copy", resume=True, logging_config=often))
        assert f"from step {step if damage is None else step - 1}, " in capsys.readouterr().err
        assert read_weights(tmp_path / "copy") == read_weights(tmp_path / "whole")
        assert (
            read_metrics(tmp_path / "copy")[-1]["held_out_loss"]
            == read_metrics(tmp_path / "whole")[-1]["held_out_loss"]
        )
        shutil.rmtree(tmp_path / "copy")
    assert sorted(path.name for path in state.glob("*.pt")) == ["state.previous.pt", "state.pt"]


def test_seed_and_parts_of_a_batch(make_run: MakeRun, tmp_path: Path) -> None:
    config = dataclasses.replace(make_run().config, network=dataclasses.replace(make_run().config.network, dropout=0.0))
    losses = {}
    for name, changes in {"a": {}, "parts": {"accumulate": 3}, "seed": {"seed": 1}}.items():
        train(make_run(out=tmp_path / name, config=dataclasses.replace(config, **changes)))
        losses[name] = read_metrics(tmp_path / name)[-1]["loss"]
    assert losses["parts"] == pytest.approx(losses["a"], rel=1e-4)
    assert losses["seed"] != pytest.approx(losses["a"], rel=1e-3)


def test_the_folder_is_a_diffusers_pipeline(make_run: MakeRun, tmp_path: Path) -> None:
    from diffusers import DDPMPipeline

    report = train(make_run(num_samples=5))
    folder = tmp_path / "run"
    assert report is not None
    assert report["samples"] == str(folder / "samples.png")
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.jsonl", "model_index.json", "samples.png", "scheduler", "state", "train.json", "unet",
    ]  # fmt: skip
    described = json.loads((folder / "train.json").read_text())
    process = Process.from_json(described["process"])
    assert process.checkpoint_sha256 == report["checkpoint_sha256"] == hash_file(folder / "unet" / WEIGHTS)
    assert (folder / "unet" / WEIGHTS).stat().st_mode == (folder / "train.json").stat().st_mode
    again = process_from_diffusers(
        json.loads((folder / "scheduler" / "scheduler_config.json").read_text()),
        json.loads((folder / "unet" / "config.json").read_text()),
        checkpoint_sha256=process.checkpoint_sha256,
    )
    assert again == process

    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=20, output_type="np").images
    assert images.shape == (2, 8, 8, 3)
    assert np.isfinite(images).all()
    # What is published is the average, not the last weights.
    state = torch.load(folder / "state" / "state.pt", weights_only=True)
    for name, tensor in pipeline.unet.state_dict().items():
        torch.testing.assert_close(tensor, state["ema"][name], rtol=0, atol=0)
    assert not torch.equal(state["ema"]["conv_in.weight"], state["network"]["conv_in.weight"])


def test_held_out_loss_does_not_depend_on_the_seed_of_the_run(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_at_all(self: Learner, at: int, batch: Any) -> Any:
        return torch.tensor(1.0), torch.tensor(1.0)

    # With equal initial weights and no updates, two seeds must be given the same held-out loss.
    monkeypatch.setattr(Learner, "update", not_at_all)
    monkeypatch.setattr("train.batches.Draws.torch_seed", lambda self, step, process_index: 0)
    losses = []
    for seed in (0, 1):
        config = dataclasses.replace(make_run().config, seed=seed)
        report = train(make_run(out=tmp_path / str(seed), config=config))
        assert report is not None
        losses.append(report["held_out_loss"])
    assert losses[0] == losses[1]


def test_divergence_is_reported_and_the_last_good_state_kept(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Learner.update

    def diverging(self: Learner, at: int, batch: Any) -> Any:
        loss, grad_norm = update(self, at, batch)
        return (loss * float("nan") if at >= 3 else loss), grad_norm

    monkeypatch.setattr(Learner, "update", diverging)
    often = LoggingConfig(log_every=100, evaluate_every=100, save_seconds=0.0, num_workers=0)
    with pytest.raises(
        InputError, match="the loss is nan at step 4, .*the state of step 3 is kept.*--learning-rate below 0.001"
    ):
        train(make_run(logging_config=often))
    assert torch.load(tmp_path / "run" / "state" / "state.pt", weights_only=True)["step"] == 3


def test_a_loss_that_is_infinite_once_between_two_lines_is_named_with_its_step(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the weights stay finite, and so does every loss after it."""
    update = Learner.update

    def once(self: Learner, at: int, batch: Any) -> Any:
        loss, grad_norm = update(self, at, batch)
        return (loss * float("inf") if at == 5 else loss), grad_norm

    monkeypatch.setattr(Learner, "update", once)
    with pytest.raises(InputError, match="the loss is inf at step 6, .*no state was saved yet"):
        train(make_run())
    assert not (tmp_path / "run" / "train.json").exists()
    assert not (tmp_path / "run" / "model_index.json").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_held_out_loss_that_is_not_finite_ends_training_with_the_state_kept(
    value: float, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.evaluation.HeldOutLoss.__call__", lambda self, network: value)
    often = LoggingConfig(log_every=100, evaluate_every=4, save_seconds=0.0, num_workers=0)
    with pytest.raises(
        InputError,
        match=f"the held-out loss is {value} at step 4, .*the state of step 3 is kept.*--learning-rate below",
    ):
        train(make_run(logging_config=often))
    assert torch.load(tmp_path / "run" / "state" / "state.pt", weights_only=True)["step"] == 3
    assert not (tmp_path / "run" / "train.json").exists()
    assert (tmp_path / "run" / "state" / "metrics.jsonl").read_text() == ""


def test_weights_that_the_last_update_broke_are_not_kept(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Learner.update

    def breaking(self: Learner, at: int, batch: Any) -> Any:
        result = update(self, at, batch)
        if at == 5:
            with torch.no_grad():
                next(iter(self._weights.parameters())).fill_(float("nan"))
        return result

    monkeypatch.setattr(Learner, "update", breaking)
    often = LoggingConfig(log_every=100, evaluate_every=100, save_seconds=0.0, num_workers=0)
    with pytest.raises(
        InputError, match=r"the weights conv_in.weight are not finite after step 6: .*the state of step 5"
    ):
        train(make_run(logging_config=often))
    assert torch.load(tmp_path / "run" / "state" / "state.pt", weights_only=True)["step"] == 5


def test_data_that_would_be_nearly_black_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 17, (30, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "numbers.npz", numbers)
    with pytest.raises(InputError, match="no pixel is above 16 of 255, .* give --levels 17, .* --levels 256"):
        train(make_run(data=DataRequest(str(tmp_path / "numbers.npz"))))
    assert not (tmp_path / "run").exists()
    train(make_run(data=DataRequest(str(tmp_path / "numbers.npz"), levels=17)))
    described = json.loads((tmp_path / "run" / "train.json").read_text())
    assert described["process"]["sample"]["levels"] == 17


def test_stopping_while_sampling_keeps_the_trained_state(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGINT)
        arguments[-2]()  # what is called after every step of sampling
        raise AssertionError("went on sampling")

    with monkeypatch.context() as patch:
        patch.setattr("train.training.sample", interrupted)
        with pytest.raises(StoppedError, match="stopped while sampling"):
            train(make_run(num_samples=4))
    assert not (tmp_path / "run" / "train.json").exists()
    report = train(make_run(num_samples=4, resume=True))
    assert report is not None
    assert (tmp_path / "run" / "samples.png").is_file()


def test_memory_is_asked_for_before_the_work(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    class ReachedError(Exception):
        """Where the work would begin."""

    def reached(*_: object) -> None:
        raise ReachedError

    asked: list[int] = []
    monkeypatch.setattr("train.training.check_memory", lambda what, needed_bytes, remedy: asked.append(needed_bytes))
    monkeypatch.setattr("train.training._notes_of_levels", reached)
    run = make_run(num_samples=3)
    with pytest.raises(ReachedError):
        train(run)
    # Images, noise and x_t, and the network's input: four float32 arrays; of a batch, and of the grid at the end.
    of_one = 4 * 4 * load_data(run.data)[0].shape.num_elements
    assert asked == [of_one * run.config.batch_size, of_one * 3]
