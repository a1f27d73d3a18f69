"""The tables of the multistep methods against the papers' own recursions, which know of no table: `papers.py`.

Clipped too, which the schedulers of diffusers cannot be, and chains of one to ten rows, uneven ones among them.
"""

import numpy as np
import pytest

from diffusion.noise_schedule import NoiseSchedule
from diffusion.reference_loop import initial_noise, reference_loop
from diffusion.samplers import make_table
from tests.diffusion.samplers.networks import RandomNetwork, a_process
from tests.diffusion.samplers.papers import METHODS, Chain, integrate

CHAINS = [
    [999],
    [999, 300],
    [999, 300, 0],
    [999, 998, 500, 1, 0],
    list(range(999, -1, -111)),
]
LINEAR, COSINE = NoiseSchedule.make("linear"), NoiseSchedule.make("squaredcos_cap_v2")
SCHEDULES = {"linear": LINEAR, "cosine": COSINE, "zero_terminal_snr": LINEAR.with_zero_terminal_snr()}
CASES = [
    (schedule, prediction_type)
    for schedule in SCHEDULES
    for prediction_type in ("epsilon", "sample", "v_prediction")
    if (schedule, prediction_type) != ("zero_terminal_snr", "epsilon")  # x_start cannot be had from eps alone there
]


def both(sampler, process, timesteps, seed=3):
    """x_0 by the table and by the paper, and the table."""
    x = initial_noise((2, *process.sample.chw), seed, 0).astype(np.float64)
    network = RandomNetwork(process)
    table = make_table(process, sampler, timesteps=timesteps)
    of_paper = METHODS[sampler](Chain(process, timesteps, network, seed), x)
    return reference_loop(table, network, x, seed), of_paper, table


@pytest.mark.parametrize("sampler", METHODS)
@pytest.mark.parametrize(("schedule", "prediction_type"), CASES)
@pytest.mark.parametrize("clip_sample", [None, 0.3])
def test_equals_the_papers_recursion(sampler, schedule, prediction_type, clip_sample):
    process = a_process(schedule=SCHEDULES[schedule], prediction_type=prediction_type, clip_sample=clip_sample)
    for timesteps in CHAINS:
        ours, of_paper, table = both(sampler, process, timesteps)
        tolerance = 1e-10 * (1 + table.conditioning)  # 1/√ᾱ, up to 2·10⁴ here, is left standing in the paper of DEIS
        np.testing.assert_allclose(ours, of_paper, rtol=0, atol=tolerance, err_msg=str(timesteps))


@pytest.mark.parametrize("sampler", METHODS)
def test_the_clip_of_these_chains_cuts(sampler):
    for timesteps in CHAINS:
        clipped, unclipped = (both(sampler, a_process(clip_sample=clip), timesteps)[1] for clip in (0.3, None))
        assert np.abs(clipped - unclipped).max() > 0.05


def test_the_methods_differ_by_more_than_they_are_compared_to():
    of_all = [both(sampler, a_process(), CHAINS[-1])[1] for sampler in METHODS]
    for place, one in enumerate(of_all):
        for other in of_all[:place]:
            assert np.abs(one - other).max() > 1e-3


def test_the_quadrature_of_the_papers_integrals():
    for start, end in ((5.0, 4.99), (5.0, -5.0), (0.0, 1.0)):
        exact = np.exp(end) * (end**2 - 2 * end + 2) - np.exp(start) * (start**2 - 2 * start + 2)
        assert integrate(lambda y: y**2 * np.exp(y), start, end) == pytest.approx(exact, rel=1e-12)
