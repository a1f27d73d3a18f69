"""Every sampler against diffusers' scheduler of the same method, in float64, with its timesteps and our noise."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
)

from diffusion.noise_schedule import NoiseSchedule
from diffusion.prediction import x_start_coefficients
from diffusion.process import SampleShape
from diffusion.reference_loop import initial_noise, reference_loop, reference_states
from diffusion.samplers import make_table
from diffusion.samplers.deis import deis_columns
from diffusion.step_table import StepTable
from tests.diffusers_loop import diffusers_loop
from tests.diffusion.samplers.diffusers_schedulers import float64_scheduler, own_timesteps, scheduler_states
from tests.diffusion.samplers.networks import RandomNetwork, a_process, gaussian

# Of x, which is of unit size, times the conditioning of the table where that is large.
TOLERANCE = 2e-13
NETWORKS = {"gaussian": gaussian, "random": RandomNetwork}
SCHEDULES = ["linear", "squaredcos_cap_v2"]
LARGE = SampleShape(1, 32, 32)
SEED = 3


def start(process, num=2):
    return initial_noise((num, *process.sample.chw), SEED, 0).astype(np.float64)


def largest(ours, theirs):
    return np.abs(np.asarray(ours) - np.asarray(theirs)).max()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip_sample", [None, 0.8])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clipped_output", [True, False])
def test_ddim(network, eta, clip_sample, spacing, clipped_output, monkeypatch):
    check_ddim(a_process(sample=LARGE, clip_sample=clip_sample), network, eta, spacing, clipped_output, monkeypatch)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@pytest.mark.parametrize("clipped_output", [True, False])
def test_ddim_of_other_predictions(prediction_type, clipped_output, monkeypatch):
    process = a_process(sample=LARGE, clip_sample=0.8, prediction_type=prediction_type)
    check_ddim(process, "random", 0.5, "trailing", clipped_output, monkeypatch)


def test_the_two_ways_of_ddim_differ_where_x_start_is_clipped_alone():
    for clip_sample, differ in ((None, False), (0.8, True)):
        process = a_process(sample=LARGE, clip_sample=clip_sample)
        ways = [make_table(process, "ddim", 10, use_clipped_model_output=way) for way in (True, False, None)]
        x_0 = [reference_loop(table, RandomNetwork(process), start(process)) for table in ways]
        assert (largest(x_0[0], x_0[1]) > 0.1) == differ
        assert np.array_equal(x_0[0], x_0[2])


def check_ddim(process, network, eta, spacing, clipped_output, monkeypatch):
    clip_sample = process.clip_sample
    clipping = {"clip_sample": clip_sample is not None, "clip_sample_range": clip_sample or 1.0}
    scheduler = float64_scheduler(
        DDIMScheduler, process, monkeypatch, timestep_spacing=spacing, set_alpha_to_one=True, **clipping
    )
    own_timesteps(scheduler, 10)
    predict = NETWORKS[network](process)
    theirs = scheduler_states(
        scheduler, predict, start(process), SEED if eta else None, eta=eta, use_clipped_model_output=clipped_output
    )
    table = make_table(process, "ddim", 10, spacing, eta=eta, use_clipped_model_output=clipped_output)
    np.testing.assert_array_equal(table.timesteps, scheduler.timesteps.numpy())
    ours = [state.x for state in reference_states(table, predict, start(process), SEED)]
    assert largest(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(
    ("sampler", "scheduler_type", "config"),
    [
        ("dpmpp_2m", DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
        ("dpmpp_sde_2m", DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        ("unipc", UniPCMultistepScheduler, {"solver_type": "bh2"}),
    ],
)
def test_multistep(sampler, scheduler_type, config, kind, prediction_type, monkeypatch):
    process = a_process(sample=LARGE, schedule=NoiseSchedule.make(kind), prediction_type=prediction_type)
    scheduler = float64_scheduler(
        scheduler_type, process, monkeypatch, solver_order=2, final_sigmas_type="zero", **config
    )
    table = make_table(process, sampler, timesteps=own_timesteps(scheduler, 12))
    for network in NETWORKS.values():
        own_timesteps(scheduler, 12)  # also forgets the steps before
        predict = network(process)
        theirs = scheduler_states(scheduler, predict, start(process), SEED if "sde" in sampler else None)
        ours = [state.x for state in reference_states(table, predict, start(process), SEED)]
        assert largest(ours, theirs) < TOLERANCE * (1 + table.conditioning)


def deis_ending_at_first_timestep(process, timesteps, order):
    alpha_bar = process.schedule.alpha_bar[timesteps]
    ends = np.append(alpha_bar[1:], process.schedule.alpha_bar[0])
    u, v = x_start_coefficients(process.prediction_type, alpha_bar)
    return StepTable.from_columns(
        "deis", timesteps, {"u": u, "v": v, **deis_columns(alpha_bar, ends, order)}, histories=order - 1
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("order", [2, 3])
def test_deis_ended_where_theirs_ends(network, kind, order, monkeypatch):
    process = a_process(sample=LARGE, schedule=NoiseSchedule.make(kind))
    scheduler = float64_scheduler(DEISMultistepScheduler, process, monkeypatch, solver_order=order)
    # With 15 steps and more they lower the order of no step, with fewer that of the last ones.
    num_steps = 12 if order == 2 else 16
    table = deis_ending_at_first_timestep(process, own_timesteps(scheduler, num_steps), order)
    predict = NETWORKS[network](process)
    theirs = scheduler_states(scheduler, predict, start(process))
    ours = [state.x for state in reference_states(table, predict, start(process))]
    same = len(ours) if order == 2 else len(ours) - 1
    assert largest(ours[:same], theirs[:same]) < TOLERANCE * (1 + table.conditioning)


# Where they differ, by design.


def test_deis_of_diffusers_ends_at_the_first_alpha_bar_and_ours_at_data(monkeypatch):
    process = a_process()
    scheduler = float64_scheduler(DEISMultistepScheduler, process, monkeypatch, solver_order=2)
    table, predict = make_table(process, "deis", timesteps=own_timesteps(scheduler, 12)), gaussian(process)
    theirs = scheduler_states(scheduler, predict, start(process))
    ours = [state.x for state in reference_states(table, predict, start(process))]
    assert largest(ours[:-1], theirs[:-1]) < TOLERANCE
    left = np.sqrt(1 - process.schedule.alpha_bar[0])  # the noise that theirs leaves in x_0
    assert 0.2 * left < largest(ours[-1], theirs[-1]) < 4 * left


def test_ddim_of_diffusers_takes_the_wrong_previous_timestep_with_linspace(monkeypatch):
    process = a_process()
    scheduler = float64_scheduler(
        DDIMScheduler, process, monkeypatch, timestep_spacing="linspace", clip_sample=False, set_alpha_to_one=True
    )
    table = make_table(process, "ddim", timesteps=own_timesteps(scheduler, 10))
    np.testing.assert_array_equal(table.timesteps, make_table(process, "ddim", 10, "linspace").timesteps)
    predict = gaussian(process)
    theirs = scheduler_states(scheduler, predict, start(process), use_clipped_model_output=True)
    assert largest(reference_loop(table, predict, start(process)), theirs[-1]) > 1e-2
    # It steps by T/N = 100 from points 111 apart: the network is told 888 where the state is that of 899.
    first = make_table(process, "ddim", timesteps=[999, 899])
    ours = next(reference_states(first, predict, start(process))).x
    assert largest(ours, theirs[0]) < TOLERANCE


def test_ddim_of_diffusers_keeps_the_unclipped_eps_unless_told(monkeypatch):
    process = a_process(clip_sample=0.2)
    scheduler = float64_scheduler(
        DDIMScheduler, process, monkeypatch, timestep_spacing="trailing", clip_sample=True, clip_sample_range=0.2
    )
    own_timesteps(scheduler, 10)
    predict = gaussian(process)
    ours = reference_loop(make_table(process, "ddim", 10), predict, start(process))
    assert largest(ours, scheduler_states(scheduler, predict, start(process))[-1]) > 1e-2


@pytest.mark.parametrize(
    "scheduler_type", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler]
)
def test_multistep_schedulers_of_diffusers_never_call_at_0_and_cannot_clip(scheduler_type):
    scheduler = scheduler_type(num_train_timesteps=1000)
    assert 0 not in own_timesteps(scheduler, 10)  # 11 points, of which the last is where it ends
    assert not {"clip_sample", "clip_sample_range"} & set(scheduler.config)
    assert 0 in make_table(a_process(), "unipc", 10, "linspace").timesteps


@pytest.mark.parametrize(("kind", "about"), [("linear", 4e-5), ("squaredcos_cap_v2", 4e-4)])
def test_float32_tables_of_diffusers_alone_move_x_0(kind, about, monkeypatch):
    process = a_process(schedule=NoiseSchedule.make(kind))
    table, network, x = make_table(process), gaussian(process), start(process)

    def predict(state: torch.Tensor, timestep: int) -> torch.Tensor:
        return torch.from_numpy(network(state.numpy(), np.full(len(state), timestep)))

    ours = reference_loop(table, network, x, SEED)
    with_our_table, with_theirs = (
        diffusers_loop(process, table.timesteps, predict, x, SEED, 0, monkeypatch, float64_tables)
        for float64_tables in (True, False)
    )
    assert largest(ours, with_our_table) < TOLERANCE
    assert about / 5 < largest(ours, with_theirs) < about * 5
