"""Whatever folder `DDPMPipeline.from_pretrained` loads is what diffusers makes of it, or refused with the reason."""

from __future__ import annotations

import json
import re
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from diffusers.schedulers import scheduling_ddpm, scheduling_ddpm_parallel

from benchmarks.networks import random_network
from diffusion.diffusers_schedulers import SCHEDULER_CLASSES
from diffusion.errors import InputError
from diffusion.normal import draw_number, normal_batch
from diffusion.process import Process
from runtime import Sampler
from runtime.engines.torch_checkpoint import TorchEngine, load_checkpoint
from tests.runtime.engines.folder_matrix import (
    AXES,
    OTHER_PROCESSES,
    SETTINGS,
    TOLD,
    UNET,
    WEIGHTS,
    Case,
    all_pairs,
    at_random,
    make_folder,
    save_weights,
)

# KDPM2DiscreteScheduler calls NumPy on a tensor of PyTorch.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
NUM, SEED, STEPS = 2, 3, 7


def reason_to_refuse(case: Case) -> str | None:
    """Why diffusers does not load it, or it would be sampled wrongly, as a pattern; None if it would not."""
    if case.scheduler in OTHER_PROCESSES:
        return rf"the scheduler is '{case.scheduler}' \("
    found = SCHEDULER_CLASSES[case.scheduler]
    reasons = {
        "fixed_large_log": "variance_type is 'fixed_large_log'",
        "learned": "variance_type is 'learned' ",
        "thresholding": "thresholding is true",
        "steps_offset": "steps_offset is 1",
        "flow": "use_flow_sigmas is true",
        "old sample": "predict_epsilon is false",
        "zero snr of eps": "alpha_bar = 0, where epsilon",
    }
    if "rescale_betas_zero_snr" in found.passes_over:
        reasons |= dict.fromkeys(("zero snr", "zero snr of eps"), "rescale_betas_zero_snr is given, which")
    if case.betas == "trained" and "trained_betas" in found.passes_over:
        reasons.setdefault(case.setting, "trained_betas is given, which")
    if "DDIM" in case.scheduler or "DDPM" in case.scheduler:
        reasons["not to one"] = "set_alpha_to_one is false"
    kind = case.config.get("beta_schedule", found.beta_kinds[0])
    return reasons.get(case.setting, None if kind in found.beta_kinds else f"beta_schedule is '{kind}', expected")


SAMPLED = all_pairs(lambda case: reason_to_refuse(case) is None)
REFUSED = at_random(lambda case: reason_to_refuse(case) is not None, 100)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    for channels in (1, 2):
        network = random_network(channels, out_channels=channels, **UNET)
        for weights in WEIGHTS:
            save_weights(folder / f"{weights} {channels}", network, weights)
    return folder


def load_by_diffusers(folder: Path, case: Case) -> DDPMPipeline:
    told = TOLD.get(case.weights, {})
    if "variant" in told and case.layout in ("flat", "network in root"):
        # The pipeline looks for variants in sub-folders alone.
        return DDPMPipeline.from_pretrained(folder, unet=UNet2DModel.from_pretrained(folder, **told))
    return DDPMPipeline.from_pretrained(folder, **told)


def check_network(folder: Path, process: Process, pipeline: DDPMPipeline) -> None:
    """The network at 16 timesteps over the whole range, in batches of 1, 2 and 5."""
    engine = TorchEngine(folder, allow_pickle=True)
    timesteps = np.linspace(0, process.schedule.num_train_timesteps - 1, 16).round().astype(np.float32)
    rng = np.random.default_rng(0)
    while len(timesteps):
        num = {16: 1, 15: 2, 13: 5, 8: 5, 3: 3}[len(timesteps)]
        t, timesteps = np.ascontiguousarray(timesteps[:num]), timesteps[num:]
        x = rng.standard_normal((num, *process.sample.chw), dtype=np.float32)
        ours = np.empty((num, process.prediction_channels, *process.sample.chw[1:]), dtype=np.float32)
        engine.bind(x, t, ours)()
        with torch.no_grad():
            theirs = pipeline.unet(torch.from_numpy(x), torch.from_numpy(t)).sample.numpy()
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
        assert np.linalg.norm(theirs) > 0.1


def check_process(case: Case, process: Process, scheduler: Any) -> None:
    theirs = scheduler.betas.numpy()
    close = {"rtol": 0, "atol": 1e-5} if case.config.get("rescale_betas_zero_snr") else {"rtol": 1e-5, "atol": 1e-8}
    np.testing.assert_allclose(process.schedule.betas, theirs, **close)
    config = scheduler.config
    assert process.schedule.num_train_timesteps == config.num_train_timesteps
    assert process.prediction_type == config.get("prediction_type", "epsilon")
    assert process.clip_sample == (config.get("clip_sample_range", 1.0) if config.get("clip_sample") else None)
    if "timestep_spacing" in config:
        assert process.timestep_spacing == config.timestep_spacing


def check_chain(folder: Path, pipeline: DDPMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain that the pipeline's own loop draws from equal noise, with its tables in float64 as ours are."""
    sampler = Sampler(folder, num_steps=STEPS, allow_pickle=True)
    process, scheduler = sampler.process, pipeline.scheduler
    scheduler.betas = torch.from_numpy(process.schedule.betas.copy())
    scheduler.alphas = torch.from_numpy(process.schedule.alphas.copy())
    scheduler.alphas_cumprod = torch.from_numpy(process.schedule.alpha_bar.copy())
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(STEPS)

    def noise(timestep: int | None) -> torch.Tensor:
        draw = draw_number(timestep)
        return torch.from_numpy(normal_batch(process.sample.chw, [SEED] * NUM, list(range(NUM)), [draw] * NUM))

    x = noise(None)
    for timestep in scheduler.timesteps:
        # diffusers adds noise to the image itself where the last timestep is not 0; we never do.
        z = noise(int(timestep)) * (timestep != scheduler.timesteps[-1])
        for module in (scheduling_ddpm, scheduling_ddpm_parallel):
            monkeypatch.setattr(module, "randn_tensor", lambda *_, z=z, **__: z)
        with torch.no_grad():
            x = scheduler.step(pipeline.unet(x, timestep).sample, int(timestep), x).prev_sample.float()
    ours = sampler.sample_float32(NUM, SEED)
    assert np.linalg.norm(ours - x.numpy()) <= 1e-5 * np.linalg.norm(x.numpy())


@pytest.mark.parametrize("case", SAMPLED, ids=str)
def test_a_folder_is_what_diffusers_makes_of_it(
    case: Case, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "checkpoint", case, networks)
    pipeline = load_by_diffusers(folder, case)
    process = load_checkpoint(folder, allow_pickle=True).process
    check_network(folder, process, pipeline)
    check_process(case, process, pipeline.scheduler)
    if case.scheduler.startswith("DDPM"):
        check_chain(folder, pipeline, monkeypatch)


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_would_be_sampled_wrongly_is_refused_with_the_reason(case: Case, networks: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "checkpoint", case, networks)
    with pytest.raises(InputError, match=reason_to_refuse(case)) as error:
        load_checkpoint(folder, allow_pickle=True)
    assert "\n" not in str(error.value)


def test_the_matrix_holds_what_it_should() -> None:
    for axis in range(len(AXES)):
        refused = {
            "fixed_large_log",
            "learned",
            "thresholding",
            "steps_offset",
            "flow",
            "old sample",
            "zero snr of eps",
        }
        assert {astuple(case)[axis] for case in SAMPLED} == set(AXES[axis]) - refused - set(OTHER_PROCESSES)
    assert {case.setting for case in REFUSED} == set(SETTINGS)
    assert sum(case.scheduler.startswith("DDPM") for case in SAMPLED) > 20


def test_files_are_those_that_the_matrix_names(networks: Path) -> None:
    config = json.loads((networks / "single 1" / "config.json").read_text())
    assert config["out_channels"] == 1
    for weights, pattern in (
        ("shards", r"diffusion_pytorch_model-00001-of-\d+\.safetensors"),
        ("pickle shards", r"diffusion_pytorch_model-00001-of-\d+\.bin"),
        ("variant", r"diffusion_pytorch_model\.fp16\.safetensors"),
        ("variant shards", r"diffusion_pytorch_model\.fp16-00001-of-\d+\.safetensors"),
    ):
        names = [path.name for path in (networks / f"{weights} 1").iterdir()]
        assert any(re.fullmatch(pattern, name) for name in names), names
