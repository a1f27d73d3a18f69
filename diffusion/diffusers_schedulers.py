"""diffusers' scheduler classes: which of them describe a DDPM process, by which defaults, and why others do not.

A scheduler's file describes how the network was trained and how its class samples. Only the first is taken: the sampler
is ours. What a file leaves out is the default of its class, which is not that of every class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion.errors import InputError
from diffusion.number_checks import shown

DEFAULT_SCHEDULER = "DDPMScheduler"
_RESCALE, _TRAINED = "rescale_betas_zero_snr", "trained_betas"
_COMMON_KINDS = ("linear", "scaled_linear", "squaredcos_cap_v2")


@dataclass(frozen=True)
class SchedulerClass:
    """How a class reads its configuration.

    Attributes:
        beta_kinds: the values of `beta_schedule` that it knows, the default first.
        beta_start, beta_end: its defaults.
        clips: its default of `clip_sample`; a class that has None never clips.
        timestep_spacing: its default; of a class without the field, the spacing it always takes.
        passes_over: fields of the noise schedule that it does not know.
        ends_at_data: whether `set_alpha_to_one: false` changes what one of our samplers would draw.
    """

    beta_kinds: tuple[str, ...] = _COMMON_KINDS
    beta_start: float = 1e-4
    beta_end: float = 0.02
    clips: bool | None = None
    timestep_spacing: str = "linspace"
    passes_over: tuple[str, ...] = (_RESCALE,)
    ends_at_data: bool = False


_DDPM = SchedulerClass(
    (*_COMMON_KINDS, "sigmoid", "laplace"), clips=True, timestep_spacing="leading", passes_over=(), ends_at_data=True
)
_DDIM = SchedulerClass(clips=True, timestep_spacing="leading", passes_over=(), ends_at_data=True)
_SOLVER = SchedulerClass()
_RESCALING_SOLVER = SchedulerClass(passes_over=())
_OF_K_DIFFUSION = SchedulerClass(beta_start=0.00085, beta_end=0.012)

# Compared with the signatures of the installed diffusers by tests/diffusion/test_diffusers_schedulers.py.
SCHEDULER_CLASSES: Mapping[str, SchedulerClass] = {
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDIMInverseScheduler": _DDIM,
    # RePaint's takes an array for trained_betas, which no JSON holds.
    "RePaintScheduler": SchedulerClass(
        (*_COMMON_KINDS, "sigmoid"), clips=True, timestep_spacing="leading", passes_over=(_RESCALE, _TRAINED)
    ),
    "UnCLIPScheduler": SchedulerClass(("squaredcos_cap_v2",), clips=True, passes_over=(_RESCALE, _TRAINED)),
    "PNDMScheduler": SchedulerClass(timestep_spacing="leading"),
    "DPMSolverMultistepScheduler": _RESCALING_SOLVER,
    "DPMSolverMultistepInverseScheduler": _SOLVER,
    "DPMSolverSinglestepScheduler": _SOLVER,
    "DPMSolverSDEScheduler": _OF_K_DIFFUSION,
    "DEISMultistepScheduler": _SOLVER,
    "UniPCMultistepScheduler": _RESCALING_SOLVER,
    "SASolverScheduler": _SOLVER,
    "EulerDiscreteScheduler": _RESCALING_SOLVER,
    "EulerAncestralDiscreteScheduler": _RESCALING_SOLVER,
    "LMSDiscreteScheduler": _SOLVER,
    "HeunDiscreteScheduler": SchedulerClass((*_COMMON_KINDS, "exp"), 0.00085, 0.012, clips=False),
    "KDPM2DiscreteScheduler": _OF_K_DIFFUSION,
    "KDPM2AncestralDiscreteScheduler": _OF_K_DIFFUSION,
}
_SIGMA_CONDITIONED = "its networks are conditioned on σ instead of timesteps"
_FLOW = "it describes a flow, not a DDPM process"
_DISTILLED = "its networks are distilled to be run by its own few steps"
_REFUSED: Mapping[str, str] = {
    "EDMEulerScheduler": _SIGMA_CONDITIONED,
    "EDMDPMSolverMultistepScheduler": _SIGMA_CONDITIONED,
    "CosineDPMSolverMultistepScheduler": _SIGMA_CONDITIONED,
    "KarrasVeScheduler": _SIGMA_CONDITIONED,
    "ScoreSdeVeScheduler": _SIGMA_CONDITIONED,
    "ScoreSdeVpScheduler": "it describes a process in continuous time",
    "CMStochasticIterativeScheduler": "it describes a consistency model, conditioned on σ",
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
    "IPNDMScheduler": "it names no betas, and makes noise levels of its own for every number of steps",
    "CogVideoXDDIMScheduler": "it shifts the signal-to-noise ratio of its betas",
    "CogVideoXDPMScheduler": "it shifts the signal-to-noise ratio of its betas",
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW,
    "FlowMatchLCMScheduler": _FLOW,
    "VQDiffusionScheduler": "it describes a diffusion of discrete codes",
}


def scheduler_class(config: Mapping[str, Any], source: str) -> SchedulerClass:
    """The class that `_class_name` of a scheduler's configuration names; DDPMScheduler where it names none.

    Raises:
        InputError: a class that describes another process, with the reason, or one that is not known.
    """
    name = config.get("_class_name", DEFAULT_SCHEDULER)
    found = SCHEDULER_CLASSES.get(name) if isinstance(name, str) else None
    if found is None:
        reason = _REFUSED.get(name) if isinstance(name, str) else None
        raise InputError(
            f"{source}: the scheduler is {shown(name)}{f' ({reason})' if reason else ''}, expected DDPMScheduler, "
            "DDIMScheduler or another one of a DDPM process; choose a checkpoint of an unconditional DDPM"
        )
    return found


def check_scheduler_meaning(config: Mapping[str, Any], found: SchedulerClass, source: str) -> None:
    """Refuse settings that change what is drawn, or what the network is given, and that our samplers do not reproduce.

    Raises:
        InputError: with the setting and the reason.
    """
    if config.get("thresholding"):
        raise InputError(f"{source}: thresholding is true, expected false: dynamic thresholding is not reproduced")
    if config.get("steps_offset"):
        raise InputError(f"{source}: steps_offset is {config['steps_offset']!r}, expected 0: it is not reproduced")
    if found.ends_at_data and not config.get("set_alpha_to_one", True):
        raise InputError(
            f"{source}: set_alpha_to_one is false, expected true: our chains end at data, where alpha_bar is 1"
        )
    if config.get("use_flow_sigmas"):
        raise InputError(f"{source}: use_flow_sigmas is true, expected false: {_FLOW}")
    if config.get("timestep_type", "discrete") != "discrete":
        raise InputError(
            f"{source}: timestep_type is {shown(config['timestep_type'])}, expected 'discrete': {_SIGMA_CONDITIONED}"
        )
    if config.get("predict_epsilon") is False and config.get("prediction_type", "epsilon") == "epsilon":
        raise InputError(
            f"{source}: predict_epsilon is false, a field of old versions of diffusers that new ones pass over, taking "
            "the prediction for eps; write prediction_type: 'sample' in its place"
        )
    for name in found.passes_over:
        if config.get(name):
            raise InputError(
                f"{source}: {name} is given, which {config.get('_class_name')} passes over; take it out, or name a "
                "scheduler that goes by it"
            )
