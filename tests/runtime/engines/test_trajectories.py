"""The reference side: states on chains of the network itself, the same chain again, and sizes that stay small."""

import numpy as np
import pytest

from diffusion.conditioning import MAX_ROUNDING_ERROR, rounding_error
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.reference_loop import initial_noise
from runtime.engines.trajectories import MAX_PREDICTIONS, make_golden
from runtime.engines.verification import chain_end
from tests.gaussian import GaussianNetwork


def made(schedule="linear", num_train_timesteps=1000, chw=(1, 8, 8), precision="fp32", clip=1.0, **arguments):
    process = Process(
        SampleShape(*chw), NoiseSchedule.make(schedule, num_train_timesteps), clip_sample=clip, **arguments
    )
    network = GaussianNetwork(process, 0.2, 0.5)
    return process, network, make_golden(process, network, precision)


def test_timesteps_cover_the_range_and_states_are_a_chains():
    process, network, golden = made(clip=None)
    assert len(golden.timesteps) == 16
    assert len(golden.chain_timesteps) == 20
    for timesteps in (golden.timesteps, golden.chain_timesteps):
        assert (timesteps[0], timesteps[-1]) == (999, 0)
        assert (np.diff(timesteps) < 0).all()
        assert np.diff(timesteps).min() > -120
    num = golden.x.shape[1]
    np.testing.assert_array_equal(golden.x[0], initial_noise((num, 1, 8, 8), golden.seed, 0))
    for timestep, x, prediction in zip(golden.timesteps, golden.x, golden.prediction, strict=True):
        np.testing.assert_array_equal(network(x, np.full(num, timestep)).reshape(num, -1), prediction)
    mean, variance = network.moments(golden.chain_timesteps)
    assert golden.x_0.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / golden.x_0.size))
    assert golden.x_0.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / golden.x_0.size))
    np.testing.assert_allclose(chain_end(golden, process, network), golden.x_0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_train_timesteps", [1, 2, 7, 16, 19, 21])
def test_short_processes(num_train_timesteps):
    _, _, golden = made(num_train_timesteps=num_train_timesteps)
    assert golden.timesteps.tolist() == sorted(set(golden.timesteps.tolist()), reverse=True)
    assert (golden.timesteps[0], golden.timesteps[-1]) == (num_train_timesteps - 1, 0)
    assert len(golden.timesteps) == min(16, num_train_timesteps)
    assert len(golden.chain_timesteps) == min(20, num_train_timesteps)


def test_a_chain_that_would_amplify_rounding_begins_later():
    process, network, golden = made("squaredcos_cap_v2", clip=None)
    assert golden.timesteps[0] == 999
    assert golden.chain_timesteps[0] < 999
    assert len(golden.chain_timesteps) == 20
    assert rounding_error(golden.chain_table(process), "bf16") <= MAX_ROUNDING_ERROR
    np.testing.assert_allclose(chain_end(golden, process, network), golden.x_0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_train_timesteps", [12, 21])
def test_a_short_chain_that_begins_later(num_train_timesteps):
    """Fewer timesteps are left than a chain has elsewhere."""
    process, network, golden = made("squaredcos_cap_v2", num_train_timesteps, clip=None)
    assert golden.chain_timesteps[0] < num_train_timesteps - 1
    assert golden.chain_timesteps.tolist() == list(range(len(golden.chain_timesteps)))[::-1]
    np.testing.assert_allclose(chain_end(golden, process, network), golden.x_0, rtol=0, atol=1e-5)


def test_large_samples_keep_a_part_of_their_predictions():
    _, network, golden = made(chw=(3, 64, 64), variance_type="learned_range")
    assert golden.x.shape == (16, 1, 3, 64, 64)
    assert 0.8 * MAX_PREDICTIONS < golden.prediction.size <= MAX_PREDICTIONS
    assert golden.x_0.shape == (2, 3, 64, 64)
    kept = np.zeros((6, 64, 64))
    kept.reshape(-1)[:: golden.stride] = 1
    assert kept.any(axis=(1, 2)).all()
    assert kept.any(axis=(0, 1)).all()
    assert kept.any(axis=(0, 2)).all()
    np.testing.assert_array_equal(golden.flat(network(golden.x[3], golden.timesteps[3:4])), golden.prediction[3])
    # Neighbours in time are of different chains: of one chain, states this near are alike.
    likeness = [np.corrcoef(golden.x[k].ravel(), golden.x[k + 1].ravel())[0, 1] for k in range(5)]
    assert np.abs(likeness).max() < 0.05
    assert len(golden.to_bytes()) < 1.1 * (golden.x.nbytes + golden.prediction.nbytes) + 1e5
    assert made(chw=(1, 4, 4))[2].x.shape[1] == 8


@pytest.mark.parametrize(
    ("num_train_timesteps", "chw"),
    [(1000, (1, 8, 8)), (1000, (3, 64, 64)), (1, (3, 64, 64)), (3, (3, 64, 64)), (16, (1, 80, 80)), (18, (1, 4, 4))],
)
def test_every_state_is_in_one_batch_and_batches_of_all_sizes_mix_samples_and_timesteps(num_train_timesteps, chw):
    _, _, golden = made(num_train_timesteps=num_train_timesteps, chw=chw)
    batches = golden.batches()
    assert {5, 2, 1} <= {len(rows) for rows, _ in batches}
    places = [place for rows, columns in batches for place in zip(rows.tolist(), columns.tolist(), strict=True)]
    assert sorted(places) == [(k, n) for k in range(golden.x.shape[0]) for n in range(golden.x.shape[1])]
    for rows, columns in batches:
        states = golden.x[rows, columns].reshape(len(rows), -1)
        assert len(np.unique(states, axis=0)) == len(rows)
        assert len(set(rows.tolist())) >= min(len(rows), num_train_timesteps, 16)


def test_the_reference_runs_alone():
    """Whatever a network does with a batch, its reference is what it does with one sample."""
    process = Process(SampleShape(1, 8, 8), NoiseSchedule.make("linear", 50))
    network, sizes = GaussianNetwork(process, 0.2, 0.5), set()

    def mixing(x, t):
        sizes.add((x.shape, t.shape, x.dtype, t.dtype, x.flags.c_contiguous))
        return network(x, t)

    make_golden(process, mixing, "bf16")
    assert sizes == {((1, 1, 8, 8), (1,), np.dtype(np.float32), np.dtype(np.float32), True)}


def test_rounding_of_x():
    assert (made()[2].input_rounding == 0).all()
    # The network is affine: what x loses, 2⁻⁹ of it at most and 1.7e-3 in the root mean square, the prediction loses.
    rounding = made(precision="bf16")[2].input_rounding
    assert ((rounding > 1e-3) & (rounding < 2.5e-3)).all()
