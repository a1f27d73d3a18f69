"""Every prediction type through the same pipeline, on Gaussian data: train, export to ONNX, sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion.process import PREDICTION_TYPES, Process
from export import ExportRequest, export_onnx
from runtime import Sampler
from runtime.engines.checkpoint_folder import read_checkpoint_folder
from tests.gaussian import GaussianNetwork
from train.datasets import DataRequest
from train.presets import LoggingConfig, NetworkConfig, TrainingConfig
from train.training import Run, train

MEAN, STD, NUM_TIMESTEPS = 0.2, 0.3, 20
CONFIG = TrainingConfig(
    network=NetworkConfig(block_out_channels=(16,), attention_levels=(), layers_per_block=1, norm_num_groups=1),
    steps=150,
    batch_size=32,
    learning_rate=2e-2,
    warmup_steps=20,
    learning_rate_decay="cosine",
    betas=(0.9, 0.99),
    ema_decay=0.97,
    num_train_timesteps=NUM_TIMESTEPS,
    beta_start=1e-2,
    beta_end=0.5,
    variance_type="fixed_small",
    clip_sample=None,
)


@pytest.fixture
def train_gaussian(
    tmp_path: Path, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, float]]:
    """Train on images of independent pixels from N(MEAN, STD²); the folder and the held-out loss."""
    monkeypatch.setattr("train.evaluation.NUM_EVALUATIONS", 2048)
    x_start = MEAN + STD * np.random.default_rng(0).standard_normal((4000, 4, 4, 1))
    path = tmp_path / "gaussian.npz"
    np.savez(path, np.rint(255 * np.clip(x_start / 2 + 0.5, 0, 1)).astype(np.uint8))

    def train_it(**changes: Any) -> tuple[Path, float]:
        config = dataclasses.replace(CONFIG, **changes)
        logging_config = LoggingConfig(log_every=50, evaluate_every=10**6, save_seconds=1e9, num_workers=0)
        report = train(
            make_run(config=config, data=DataRequest(str(path), held_out=1000), logging_config=logging_config)
        )
        assert report is not None
        return tmp_path / "run", float(report["held_out_loss"])

    return train_it


def draw(engine: Path) -> np.ndarray:
    """Samples [512, 4, 4, 1] in [−1, 1]."""
    return Sampler(str(engine)).sample(512, seed=0) / 127.5 - 1.0


def check_moments(engine: Path, process: Process) -> None:
    """Samples against Algorithm 2 with the optimal network."""
    x = draw(engine)
    mean, variance = GaussianNetwork(process, MEAN, STD).moments(np.arange(NUM_TIMESTEPS)[::-1])
    assert x.mean() == pytest.approx(mean, abs=0.04)
    assert x.std() == pytest.approx(np.sqrt(variance), rel=0.15)


def least_loss(process: Process, loss: str = "simple") -> float:
    """Of any network: Var[x_0 | x_t] in the unit of the loss, averaged over t."""
    schedule = process.schedule
    scale = {
        "epsilon": schedule.snr,
        "sample": np.ones(NUM_TIMESTEPS),
        "v_prediction": 1 / (1 - schedule.alpha_bar),
        "score": schedule.snr,
    }[process.prediction_type]
    if loss == "min-snr":
        scale = np.minimum(schedule.snr, 5.0)
    return float((scale * STD**2 / (1 + schedule.snr * STD**2)).mean())


@pytest.mark.slow
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_train_export_sample(
    train_gaussian: Callable[..., tuple[Path, float]], tmp_path: Path, prediction_type: str
) -> None:
    # The simple loss of x_start says next to nothing of small t, where the end of a chain is decided.
    loss = "min-snr" if prediction_type == "sample" else "simple"
    folder, held_out_loss = train_gaussian(prediction_type=prediction_type, loss=loss)
    process = read_checkpoint_folder(folder).process
    assert process.prediction_type == prediction_type
    assert 0.95 < held_out_loss / least_loss(process, loss) < 1.1
    export_onnx(ExportRequest(tmp_path / "unet.onnx", folder))
    check_moments(tmp_path / "unet.onnx", process)


def test_a_schedule_that_ends_in_noise_alone(train_gaussian: Callable[..., tuple[Path, float]]) -> None:
    folder, held_out_loss = train_gaussian(prediction_type="v_prediction", zero_terminal_snr=True)
    process = read_checkpoint_folder(folder).process
    assert process.schedule.alpha_bar[-1] == 0.0
    assert 0.95 < held_out_loss / least_loss(process) < 1.1
    check_moments(folder, process)


def test_a_learned_variance_repairs_the_spread(train_gaussian: Callable[..., tuple[Path, float]]) -> None:
    """With so few steps β̃ gives 0.23 and β 0.33 where the true variance of the reverse steps gives 0.28."""
    folder, _ = train_gaussian(variance_type="learned_range")
    process = read_checkpoint_folder(folder).process
    # A chain whose steps have the true mean and variance is exact up to its last row, which adds no noise.
    alpha_bar = process.schedule.alpha_bar[0]
    exact = np.sqrt(alpha_bar) * STD**2 / np.sqrt(alpha_bar * STD**2 + 1 - alpha_bar)
    assert draw(folder).std() == pytest.approx(exact, rel=0.08)
    for variance_type in ("fixed_small", "fixed_large"):
        fixed = dataclasses.replace(process, variance_type=variance_type)
        _, variance = GaussianNetwork(fixed, MEAN, STD).moments(np.arange(NUM_TIMESTEPS)[::-1])
        assert abs(np.sqrt(variance) / exact - 1) > 0.13


def test_a_learned_schedule_is_sampled_like_any_other(train_gaussian: Callable[..., tuple[Path, float]]) -> None:
    folder, _ = train_gaussian(learn_schedule=True, loss="vlb")
    process = read_checkpoint_folder(folder).process
    assert process.schedule.kind == "explicit"

    def scatter(log_snr: np.ndarray) -> float:
        terms = np.expm1(-np.diff(log_snr)) / (1 + np.exp(-log_snr[1:]) / STD**2)
        return float(terms.std() / terms.mean())

    assert scatter(process.schedule.log_snr) < 0.5 * scatter(CONFIG.schedule().log_snr)
    check_moments(folder, process)
