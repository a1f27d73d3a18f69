"""A tiny data set and a tiny network, so that whole runs take a second."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported: threads that spin while they wait are slow on busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch

from train.datasets import DataRequest
from train.presets import LoggingConfig, NetworkConfig, TrainingConfig
from train.training import Run


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one state per process; every test begins without one."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Networks of a few channels are slower on two threads than on one, and much slower where the cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def short_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.evaluation.NUM_EVALUATIONS", 64)


@pytest.fixture
def tiny_config() -> TrainingConfig:
    return TrainingConfig(
        network=NetworkConfig(
            block_out_channels=(8, 16), attention_levels=(1,), layers_per_block=1, norm_num_groups=4, dropout=0.1
        ),
        steps=9,
        batch_size=8,
        learning_rate=1e-3,
        warmup_steps=3,
        ema_decay=0.9,
        flips=True,
        num_train_timesteps=20,
        beta_end=0.5,
    )


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    path = tmp_path / "tiny.npz"
    np.savez(path, pixels)
    return path


@pytest.fixture
def make_run(tiny_config: TrainingConfig, tiny_data: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run of the tiny network on the tiny data; keyword arguments replace its fields."""

    def make(**fields: Any) -> Run:
        defaults: dict[str, Any] = {
            "preset": "tiny",
            "config": tiny_config,
            "data": DataRequest(str(tiny_data)),
            "logging_config": LoggingConfig(log_every=4, evaluate_every=8, save_seconds=1e9, num_workers=0),
            "out": tmp_path / "run",
            "num_samples": 0,
            "device": "cpu",
            "resume": False,
            "overwrite": False,
            "command": "python -m train.run",
            "resume_command": "python -m train.run --resume",
        }
        return Run(**{**defaults, **fields})

    return make
