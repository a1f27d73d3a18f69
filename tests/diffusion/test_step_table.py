"""What a table promises, and which chains `make_table` refuses or remarks on."""

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from diffusion.samplers import make_table
from diffusion.samplers.exponential_integrator import extrapolation_note
from diffusion.spacing import SPACINGS
from diffusion.step_table import COLUMNS, StepTable

PROCESS = Process(SampleShape(3, 8, 8), NoiseSchedule.make("linear"), clip_sample=1.0)


def test_default_is_all_timesteps_with_the_clip_of_the_process():
    table = make_table(PROCESS)
    assert table.sampler == "ddpm"
    np.testing.assert_array_equal(table.timesteps, np.arange(1000)[::-1])
    assert table.clip == 1.0
    assert (table.histories, table.learned, table.notes) == (0, False, ())


def test_cast_rounds_once():
    table = make_table(PROCESS)
    assert table.cast().dtype == np.float32
    np.testing.assert_array_equal(table.cast(), np.float32(table.coefficients))


@pytest.mark.parametrize(
    ("kind", "num_steps", "expected"),
    [("linear", 50, 0.4), ("linear", 10, 2.2), ("squaredcos_cap_v2", 50, 630), ("squaredcos_cap_v2", 10, 3150)],
)
@pytest.mark.parametrize("clip_sample", [None, 1.0])
def test_conditioning_of_known_chains(kind, num_steps, expected, clip_sample):
    process = Process(SampleShape(3, 8, 8), NoiseSchedule.make(kind), clip_sample=clip_sample)
    table = make_table(process, num_steps=num_steps)
    assert table.conditioning == pytest.approx(expected, rel=0.05)
    assert table.absolute_tolerance() == pytest.approx(1e-5 + expected / 2**21, rel=0.05)


def test_from_timestep_spaces_the_steps_below_it():
    np.testing.assert_array_equal(make_table(PROCESS, num_steps=4, from_timestep=399).timesteps, [399, 299, 199, 99])
    np.testing.assert_array_equal(make_table(PROCESS, from_timestep=2).timesteps, [2, 1, 0])
    table = make_table(PROCESS, timesteps=[400, 20], from_timestep=400)
    np.testing.assert_array_equal(table.timesteps, [400, 20])
    (note,) = table.notes
    assert "begins at timestep 400 with alpha_bar 0.1" in note


def test_remarks():
    (note,) = make_table(PROCESS, num_steps=7, spacing="leading").notes
    assert "begins at timestep 852, not at 999" in note
    # leading reaches T−1 with every timestep alone: 50 divides 1,000, and it begins at 980.
    (note,) = make_table(PROCESS, num_steps=50, spacing="leading").notes
    assert "begins at timestep 980, not at 999" in note
    assert make_table(PROCESS, spacing="leading").notes == ()
    (note,) = make_table(PROCESS, timesteps=[500, 0]).notes
    assert "alpha_bar 0.0" in note
    # Where pure noise deserves a remark: above ᾱ = 0.01.
    alpha_bar = PROCESS.schedule.alpha_bar
    above = int(np.count_nonzero(alpha_bar > 0.01)) - 1
    assert make_table(PROCESS, timesteps=[above + 1, 0]).notes == ()
    assert len(make_table(PROCESS, timesteps=[above, 0]).notes) == 1
    # A remark comes once, though its table is read again.
    saved = make_table(PROCESS, timesteps=[500, 0])
    assert make_table(PROCESS, saved).notes == saved.notes


def test_far_extrapolation_is_remarked_on():
    (note,) = make_table(PROCESS, "dpmpp_2m", timesteps=[999, 998, 1, 0]).notes
    assert "the step from timestep 998 to 1 is" in note
    assert make_table(PROCESS, "ddim", timesteps=[999, 998, 1, 0]).notes == ()
    for spacing in SPACINGS:
        for num_steps in (3, 5, 10, 20, 50, 250):
            notes = make_table(PROCESS, "unipc", num_steps, spacing).notes
            assert not any("extrapolated" in note for note in notes)


def test_extrapolation_is_remarked_on_from_five_on():
    def note(kappa: float) -> str | None:
        """Of timesteps whose second step is 2κ times the first in half-log-SNR."""
        half_log_snr = np.array([-1.0, 0.0, 2.0 * kappa, 2.0 * kappa + 1.0])
        return extrapolation_note(1.0 / (1.0 + np.exp(-2.0 * half_log_snr)), np.array([30, 20, 10, 0]))

    assert note(4.99) is None
    assert "from timestep 20 to 10 is 10 times" in note(5.01)


def test_an_inversion_ascends():
    forward = make_table(PROCESS, "ddim", num_steps=5)
    for sampler in (None, "ddim"):
        table = make_table(PROCESS, sampler, num_steps=5, invert=True)
        assert (table.sampler, table.ascending, forward.ascending) == ("ddim_inversion", True, False)
        np.testing.assert_array_equal(table.timesteps, forward.timesteps[::-1])
    assert make_table(PROCESS, num_steps=5, invert=True, eta=0.0).notes == ()
    # It begins with data, so nothing is said of noise; what is said of the spacing stays.
    (note,) = make_table(PROCESS, num_steps=7, spacing="leading", invert=True).notes
    assert "begins at timestep 852" in note


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sampler": "euler"}, "sampler is 'euler', expected one of ddpm"),
        ({"num_steps": 0}, "steps is 0"),
        ({"num_steps": 2000}, "steps is 2000, expected a whole number from 1 to 1000"),
        ({"num_steps": 5, "timesteps": [3, 2]}, "both given"),
        ({"timesteps": [3, 3]}, "strictly descending"),
        ({"timesteps": [1, 3]}, "strictly descending"),
        ({"timesteps": [1000]}, "expected 0 to 999"),
        ({"timesteps": []}, "non-empty"),
        ({"from_timestep": 1000}, "from-timestep is 1000, expected a whole number from 0 to 999"),
        ({"from_timestep": -1}, "from-timestep is -1, expected"),
        ({"from_timestep": 1.5}, "from-timestep is 1.5, expected"),
        ({"timesteps": [999, 0], "spacing": "logsnr"}, "spacing and timesteps were both given"),
        ({"lambda_min": "low"}, "lambda-min is 'low', expected a number"),
        ({"sampler": "dpmpp_2m", "invert": True}, "sampler is dpmpp_2m, which cannot be inverted; expected ddim"),
        ({"sampler": "ddpm", "invert": True}, "sampler is ddpm, which cannot be inverted; expected ddim"),
        ({"invert": True, "eta": 0.7}, "eta is 0.7, but an inversion adds no noise"),
        ({"from_timestep": 300, "timesteps": [200, 0]}, "begin at 200, but from-timestep is 300"),
        ({"from_timestep": 300, "num_steps": 302}, "from 1 to 301"),
    ],
)
def test_impossible_chains(arguments, says):
    with pytest.raises(InputError, match=says):
        make_table(PROCESS, **arguments)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"coefficients": np.zeros((2, 12))}, "shape"),
        ({"coefficients": np.full((2, 13), np.nan)}, "coefficient u at timestep 9 is nan"),
        ({"histories": 3}, "histories is 3"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"clip": np.nan}, "clip is nan"),
        ({"h2_is_x_start": True}, "h2 is x_start, but with histories 0 there is no h2"),
    ],
)
def test_impossible_tables(changes, says):
    fields = {"sampler": "mine", "timesteps": np.array([9, 0]), "coefficients": np.zeros((2, len(COLUMNS)))}
    with pytest.raises(InputError, match=says):
        StepTable(**(fields | changes))


def test_noise_after_the_last_step_is_refused():
    with pytest.raises(InputError, match="last row adds noise"):
        StepTable.from_columns("mine", np.array([9, 0]), {"s": 0.1})


def test_a_coefficient_too_large_for_float32_is_refused_when_cast():
    table = StepTable.from_columns("mine", np.array([9, 0]), {"a": np.array([1e39, 1.0])})
    with pytest.raises(InputError, match=r"coefficient a at timestep 9 is 1e\+39"):
        table.cast()
