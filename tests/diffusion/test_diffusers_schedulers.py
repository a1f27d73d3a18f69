"""The table of diffusers' scheduler classes against the classes themselves."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest

from diffusion.diffusers_config import process_from_diffusers, schedule_from_diffusers
from diffusion.diffusers_schedulers import _REFUSED, SCHEDULER_CLASSES
from diffusion.errors import InputError

# KDPM2DiscreteScheduler calls NumPy on a tensor of PyTorch.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

UNET = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
# Which need a package of their own, and which diffusers no longer has.
NOT_INSTALLED = {
    "CosineDPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "KarrasVeScheduler",
    "ScoreSdeVpScheduler",
}
KINDS = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp", "cosine"]
KNOWN = sorted(SCHEDULER_CLASSES.keys() - NOT_INSTALLED)


def defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: each.default for key, each in parameters.items()}


@pytest.mark.parametrize("name", KNOWN)
def test_defaults_are_those_of_the_class(name: str) -> None:
    ours, theirs = SCHEDULER_CLASSES[name], defaults(name)
    assert ours.beta_kinds[0] == theirs["beta_schedule"]
    assert (ours.beta_start, ours.beta_end) == (theirs.get("beta_start", 1e-4), theirs.get("beta_end", 0.02))
    assert ours.clips == theirs.get("clip_sample")
    of_its_own = {"RePaintScheduler": "leading"}.get(name, "linspace")
    assert ours.timestep_spacing == theirs.get("timestep_spacing", of_its_own)
    passed_over = {"rescale_betas_zero_snr", "trained_betas"} - theirs.keys()
    if name == "RePaintScheduler":  # hands the list to torch.from_numpy
        passed_over |= {"trained_betas"}
    assert set(ours.passes_over) == passed_over
    assert theirs["num_train_timesteps"] == 1000
    assert theirs.get("prediction_type", "epsilon") == "epsilon"
    assert theirs.get("variance_type") in (None, "fixed_small", "fixed_small_log")
    assert theirs.get("clip_sample_range", 1.0) == 1.0


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("kind", KINDS)
def test_each_class_knows_the_schedules_that_it_is_said_to(name: str, kind: str) -> None:
    config = {"_class_name": name, "beta_schedule": kind, "num_train_timesteps": 40}
    try:
        theirs = getattr(diffusers, name)(num_train_timesteps=40, beta_schedule=kind).betas.numpy()
    except (NotImplementedError, ValueError):
        with pytest.raises(InputError, match=f"beta_schedule is '{kind}', expected one of .*, which {name} knows"):
            schedule_from_diffusers(config)
        return
    np.testing.assert_allclose(schedule_from_diffusers(config).betas, theirs, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("name", KNOWN)
def test_a_file_without_fields_is_what_the_class_makes_of_it(name: str) -> None:
    theirs = getattr(diffusers, name).from_config({})
    process = process_from_diffusers({"_class_name": name}, UNET)
    np.testing.assert_allclose(process.schedule.betas, theirs.betas.numpy(), rtol=2e-5)
    assert process.prediction_type == theirs.config.get("prediction_type", "epsilon")
    assert process.clip_sample == (1.0 if theirs.config.get("clip_sample") else None)


@pytest.mark.parametrize("name", sorted(SCHEDULER_CLASSES.keys() - {"DDPMScheduler", "DDPMParallelScheduler"}))
def test_what_a_class_took_over_from_ddpm_stays(name: str) -> None:
    # from_config keeps the fields that the new class does not have, so that a pipeline can go back.
    config = {"_class_name": name, "clip_sample": True, "clip_sample_range": 2.0, "variance_type": "fixed_large"}
    process = process_from_diffusers(config, UNET)
    assert (process.clip_sample, process.variance_type) == (2.0, "fixed_large")


@pytest.mark.parametrize("name", sorted(_REFUSED))
def test_other_processes_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(InputError, match=rf"the scheduler is '{name}' \(.+\), expected DDPMScheduler"):
        process_from_diffusers({"_class_name": name}, UNET)
    assert name in NOT_INSTALLED or hasattr(diffusers, name)


@pytest.mark.parametrize("name", ["MyScheduler", None, ["DDPMScheduler"], 3])
def test_unknown_classes_are_refused(name: Any) -> None:
    with pytest.raises(InputError, match=r"^scheduler_config\.json: the scheduler is .*, expected DDPMScheduler"):
        process_from_diffusers({"_class_name": name}, UNET)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas is true.*a flow"),
        ("UniPCMultistepScheduler", {"thresholding": True}, "dynamic thresholding"),
        ("PNDMScheduler", {"steps_offset": 1}, "steps_offset is 1"),
        (
            "PNDMScheduler",
            {"rescale_betas_zero_snr": True},
            "rescale_betas.* is given, which PNDMScheduler passes over",
        ),
        ("UnCLIPScheduler", {"trained_betas": [0.1]}, "trained_betas is given, which UnCLIPScheduler passes over"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type is 'continuous'.*σ"),
        ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True}, "alpha_bar = 0, where epsilon"),
        ("DEISMultistepScheduler", {"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        ("DDIMScheduler", {"set_alpha_to_one": False}, "set_alpha_to_one is false"),
        ("DDPMScheduler", {"predict_epsilon": False}, "write prediction_type: 'sample'"),
        ("DDPMScheduler", {"predict_epsilon": "no"}, "predict_epsilon is 'no', expected true or false"),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned"}, "unbounded learned variance"),
    ],
)
def test_settings_that_would_sample_wrongly(name: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        process_from_diffusers({"_class_name": name, **fields}, UNET)


def test_settings_of_other_samplers_are_theirs() -> None:
    config = {"_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True}
    assert process_from_diffusers(config, UNET) == process_from_diffusers({"_class_name": "PNDMScheduler"}, UNET)
    process_from_diffusers({"predict_epsilon": False, "prediction_type": "sample"}, UNET)
    process_from_diffusers({"predict_epsilon": True}, UNET)
