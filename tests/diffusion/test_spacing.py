"""The five spacings against their formulas, diffusers, and what every chain needs of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.spacing import SPACINGS, check_timesteps, spaced_timesteps

LINEAR = NoiseSchedule.make("linear")


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [2, 7, 50, 1000])
def test_equals_diffusers_where_it_has_the_spacing(spacing, num_steps):
    from diffusers import DDPMScheduler

    oracle = DDPMScheduler(timestep_spacing=spacing)
    oracle.set_timesteps(num_steps)
    np.testing.assert_array_equal(spaced_timesteps(spacing, num_steps, LINEAR), oracle.timesteps.numpy())


@given(
    spacing=st.sampled_from(SPACINGS),
    kind=st.sampled_from(["linear", "squaredcos_cap_v2"]),
    sizes=st.integers(1, 300).flatmap(lambda total: st.tuples(st.integers(1, total), st.just(total))),
)
def test_any_choice_is_strictly_descending_inside_the_schedule(spacing, kind, sizes):
    num_steps, total = sizes
    schedule = NoiseSchedule.make(kind, total)
    timesteps = spaced_timesteps(spacing, num_steps, schedule)
    assert len(timesteps) == num_steps
    np.testing.assert_array_equal(check_timesteps(timesteps, total), timesteps)
    if spacing != "leading":
        assert timesteps[0] == total - 1
    if num_steps == total:
        np.testing.assert_array_equal(timesteps, np.arange(total)[::-1])


def test_one_step_stands_at_the_noisy_end_but_for_leading():
    assert {spacing: int(spaced_timesteps(spacing, 1, LINEAR)[0]) for spacing in SPACINGS} == {
        "leading": 0,
        "trailing": 999,
        "linspace": 999,
        "quadratic": 999,
        "logsnr": 999,
    }


def test_ties_round_half_to_even():
    ten = NoiseSchedule.make("linear", 10)
    # k·9/2 = 0, 4.5, 9
    np.testing.assert_array_equal(spaced_timesteps("linspace", 3, ten), [9, 4, 0])
    # 10 − (3−k)·2.5 = 2.5, 5, 7.5, 10
    np.testing.assert_array_equal(spaced_timesteps("trailing", 4, ten), [9, 7, 4, 1])


def test_quadratic_and_logsnr_are_pushed_apart():
    timesteps = spaced_timesteps("quadratic", 100, LINEAR)[::-1]
    wanted = np.round(999 * (np.arange(100) / 99) ** 2).astype(int)
    assert (np.diff(wanted) == 0).any()  # rounding alone would repeat some
    assert (np.diff(timesteps) >= 1).all()
    np.testing.assert_array_equal(timesteps[50:], wanted[50:])


def test_logsnr_is_uniform_in_lambda():
    timesteps = spaced_timesteps("logsnr", 20, LINEAR)
    lambdas = 0.5 * LINEAR.log_snr[timesteps]
    steps = np.diff(lambdas)
    # Coarse only where the schedule itself is: near the data.
    np.testing.assert_allclose(steps[:-5], steps[0], rtol=0.1)


def test_logsnr_needs_a_finite_log_snr():
    with pytest.raises(InputError, match="alpha_bar = 0"):
        spaced_timesteps("logsnr", 5, LINEAR.with_zero_terminal_snr())


@pytest.mark.parametrize("num_steps", [0, -1, 1001, 2000, 2.5, True])
def test_impossible_numbers_of_steps(num_steps):
    with pytest.raises(InputError, match=r"steps is .*, expected a whole number from 1 to 1000"):
        spaced_timesteps("trailing", num_steps, LINEAR)


@pytest.mark.parametrize(
    ("timesteps", "says"),
    [
        ([], "non-empty"),
        ([[1, 0]], "non-empty"),
        ([1.5, 0.5], "whole numbers"),
        ([1000, 0], "found 1000, expected 0 to 999"),
        ([5, -1], "found -1"),
        ([5, 5], "found 5 before 5"),
        ([5, 3, 4], "found 3 before 4"),
    ],
)
def test_impossible_timesteps(timesteps, says):
    with pytest.raises(InputError, match=says):
        check_timesteps(timesteps, 1000)


def test_unknown_spacing():
    with pytest.raises(InputError, match="'even'"):
        spaced_timesteps("even", 5, LINEAR)
