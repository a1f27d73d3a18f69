"""The five spacings against their formulas, diffusers, and what every chain needs of them."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.spacing import SPACINGS, _nearest, check_timesteps, spaced_timesteps

LINEAR = NoiseSchedule.make("linear")


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("total", [37, 50, 1000])
def test_equals_diffusers_where_it_has_the_spacing(spacing, total):
    from diffusers import DDPMScheduler

    oracle, schedule = DDPMScheduler(total, timestep_spacing=spacing), NoiseSchedule.make("linear", total)
    for num_steps in range(2, total + 1):
        oracle.set_timesteps(num_steps)
        theirs = oracle.timesteps.numpy()
        if len(theirs) == num_steps + 1:  # the product of its steps falls short of T
            assert (spacing, theirs[-1]) == ("trailing", -1)
            theirs = theirs[:-1]
        np.testing.assert_array_equal(spaced_timesteps(spacing, num_steps, schedule), theirs)


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


# After β = 0.99999 ten times, ᾱ is near 1e-50: β = 3e-16 changes it, and λ no more, whose last place is 1.4e-14.
FLAT_IN_LAMBDA = NoiseSchedule.explicit([0.1] * 5 + [0.99999] * 10 + [3e-16] * 30 + [0.5] * 5)


def naive_nearest(falling, wanted):
    """The definition, in N·T memory: argmin takes the lowest of equals."""
    return np.abs(falling[None, :] - wanted[:, None]).argmin(axis=1)


@pytest.mark.parametrize(
    "schedule",
    [
        *(NoiseSchedule.make(kind, 400) for kind in ("linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2")),
        NoiseSchedule.make("linear", 2),
        NoiseSchedule.make("linear").truncated(37),
        FLAT_IN_LAMBDA,
    ],
    ids=["linear", "scaled_linear", "sigmoid", "cosine", "two", "37", "flat"],
)
def test_logsnr_takes_the_nearest_of_all_timesteps(schedule):
    total, lambdas = schedule.num_train_timesteps, 0.5 * schedule.log_snr
    for num_steps in {2, 3, 7, 20, total // 3 + 2, total - 1, total} & set(range(2, total + 1)):
        wanted = lambdas[0] + np.arange(num_steps) / (num_steps - 1) * (lambdas[-1] - lambdas[0])
        nearest = naive_nearest(lambdas, wanted)
        np.testing.assert_array_equal(_nearest(lambdas, wanted), nearest)
        if (np.diff(nearest) > 0).all():  # nothing to push apart
            np.testing.assert_array_equal(spaced_timesteps("logsnr", num_steps, schedule)[::-1], nearest)


def test_the_lowest_of_those_equally_near_is_taken():
    assert (np.diff(FLAT_IN_LAMBDA.log_snr) == 0).any()  # the schedule above does have equals
    falling = np.array([4.0, 2.0, 2.0, 2.0, 0.0, 0.0, -4.0, -4.0])
    wanted = np.array([9.0, 4.0, 3.0, 2.9, 2.5, 2.0, 1.0, 0.9, 0.0, -2.0, -2.1, -4.0, -9.0])
    expected = [0, 0, 0, 1, 1, 1, 1, 4, 4, 4, 6, 6, 6]
    np.testing.assert_array_equal(_nearest(falling, wanted), expected)
    np.testing.assert_array_equal(naive_nearest(falling, wanted), expected)


@given(
    values=st.lists(st.integers(-20, 20), min_size=1, max_size=30),
    wanted=st.lists(st.integers(-90, 90), min_size=1, max_size=30),
)
def test_nearest_is_the_definition(values, wanted):
    falling, wanted = -np.sort(np.array(values) / 1.0), np.array(wanted) / 4
    np.testing.assert_array_equal(_nearest(falling, wanted), naive_nearest(falling, wanted))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_many_steps_of_a_long_schedule_need_no_matrix(spacing):
    schedule = NoiseSchedule.make("linear", 20_000, 1e-5, 1e-3)
    schedule.log_snr  # noqa: B018  made once, kept
    tracemalloc.start()
    timesteps = spaced_timesteps(spacing, 20_000, schedule)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(timesteps, np.arange(20_000)[::-1])
    assert peak < 20 * 8 * 20_000  # a matrix of the two would be 1,000 times as much


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
        ([[5, 4], [3]], r"found \[\[5, 4\], \[3\]\], expected a non-empty list of whole numbers"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "expected a non-empty list of whole numbers"),
        ([True, False], "whole numbers"),
        (["5", "3"], "whole numbers"),
        (5, "non-empty list"),
        ([10**23, 5], f"found {10**23}, expected 0 to 999"),
        ([2**63, -1], f"found {2**63}, expected 0 to 999"),
        (np.array([2**64 - 1], np.uint64), f"found {2**64 - 1}, expected 0 to 999"),
        ([5, -(10**30)], "found -1000000000000000000000000000000, expected 0 to 999"),
        ([1000, 0], "found 1000, expected 0 to 999"),
        ([5, -1], "found -1"),
        ([5, 5], "found 5 before 5"),
        ([5, 3, 4], "found 3 before 4"),
    ],
)
def test_impossible_timesteps(timesteps, says):
    with pytest.raises(InputError, match=says):
        check_timesteps(timesteps, 1000)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda values: np.array(values, np.int32)])
def test_possible_timesteps_come_back_as_int64(kind):
    timesteps = check_timesteps(kind([999, 5, 0]), 1000)
    assert timesteps.dtype == np.int64
    np.testing.assert_array_equal(timesteps, [999, 5, 0])


def test_leading_reaches_the_last_timestep_only_with_all_of_them():
    total = 24
    schedule = NoiseSchedule.make("linear", total)
    reached = [n for n in range(1, total + 1) if spaced_timesteps("leading", n, schedule)[0] == total - 1]
    assert reached == [total]


def test_unknown_spacing():
    with pytest.raises(InputError, match="'even'"):
        spaced_timesteps("even", 5, LINEAR)
