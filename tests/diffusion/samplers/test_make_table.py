"""Choosing a sampler: what each declares, its options, and lambda_min."""

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.samplers import SAMPLERS, make_table
from diffusion.samplers.ddim import ddim_inversion
from diffusion.samplers.exponential_integrator import half_log_snr
from diffusion.step_table import StepTable
from tests.diffusion.samplers.networks import a_process

COSINE = a_process(schedule=NoiseSchedule.make("squaredcos_cap_v2"))


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_sampler_declares_is_what_its_table_has(name):
    method = SAMPLERS[name]
    table = make_table(a_process(), name, 20)
    assert (table.sampler, method.name) == (name, name)
    assert table.histories == method.histories
    assert table.column("s").any() == method.stochastic
    assert method.summary.endswith(".")
    assert "\n" not in method.summary


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("clip_sample", [None, 1.0])
def test_every_length_builds_and_casts(name, kind, clip_sample):
    process = a_process(schedule=NoiseSchedule.make(kind), clip_sample=clip_sample)
    for chosen in ({"num_steps": 1}, {"num_steps": 2}, {"num_steps": 3}, {"timesteps": [999, 998, 1, 0]}, {}):
        table = make_table(process, name, **chosen)
        assert table.cast().shape == (len(table), 13)
        assert table.clip == (clip_sample or np.inf)


def test_options():
    options = {name: method.options for name, method in SAMPLERS.items() if method.options}
    assert options == {"ddim": {"eta": 0.0, "use_clipped_model_output": True}}
    with pytest.raises(InputError, match="eta was given, but sampler unipc does not take it: it has no options"):
        make_table(a_process(), "unipc", 10, eta=0.5)
    with pytest.raises(InputError, match="order was given, but sampler ddim does not take it: its options are eta"):
        make_table(a_process(), "ddim", 10, order=3)
    with pytest.raises(InputError, match="eta is 'high', expected a number"):
        make_table(a_process(), "ddim", 10, eta="high")
    for odd in (0, "no", 1.0):
        with pytest.raises(InputError, match="use_clipped_model_output is .*, expected True or False"):
            make_table(a_process(), "ddim", 10, use_clipped_model_output=odd)
    assert make_table(a_process(), "unipc", 10, eta=None).sampler == "unipc"  # not given


@pytest.mark.parametrize("spacing", ["trailing", "logsnr", "leading"])
def test_lambda_min_leaves_out_the_noisiest_timesteps(spacing):
    table = make_table(COSINE, "dpmpp_2m", 20, spacing, lambda_min=-5.1)
    lambdas = half_log_snr(COSINE.schedule.alpha_bar)
    assert lambdas[table.timesteps[0]] >= -5.1
    if spacing != "leading":
        assert lambdas[table.timesteps[0] + 1] < -5.1
    assert make_table(COSINE, "dpmpp_2m", 20).conditioning > 20 * table.conditioning


def test_lambda_min_makes_room_for_logsnr_spacing_with_zero_terminal_snr():
    process = a_process(schedule=NoiseSchedule.make("linear").with_zero_terminal_snr(), prediction_type="v_prediction")
    with pytest.raises(InputError, match="alpha_bar = 0"):
        make_table(process, "unipc", 10, "logsnr")
    assert len(make_table(process, "unipc", 10, "logsnr", lambda_min=-5.1)) == 10


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"lambda_min": 9.0}, "lambda-min is 9.0, expected at most"),
        ({"lambda_min": np.nan}, "lambda-min is nan"),
        ({"lambda_min": -5.1, "timesteps": [999, 0]}, "lambda-min and timesteps were both given"),
        (
            {"lambda_min": -5.1, "from_timestep": 999},
            "from-timestep is 999, but lambda-min -5.1 allows timesteps up to",
        ),
        ({"lambda_min": -5.1, "num_steps": 1000}, "steps is 1000, expected a whole number from 1 to 99"),
    ],
)
def test_impossible_lambda_min(arguments, says):
    with pytest.raises(InputError, match=says):
        make_table(COSINE, "ddim", **arguments)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"timesteps": np.array([9, 9])}, "timesteps are 9, 9, expected 0 or more, strictly descending"),
        ({"timesteps": np.array([0, 9, 3])}, "timesteps are 0, 9, 3, expected"),
        ({"timesteps": np.array([0, 9, 12]), "columns": {"s": np.array([0.1, 0.0, 0.0])}}, "if no row adds noise"),
        ({"timesteps": np.array([3, -1])}, "timesteps are 3, -1"),
        ({"timesteps": np.array([3.0, 1.0])}, "whole numbers"),
        ({"timesteps": np.array([], dtype=int)}, "one or more"),
        ({"columns": {"c1": 0.1}}, "c1 is not 0, but with histories 0"),
        ({"columns": {"g2": 0.1}, "histories": 1}, "g2 is not 0, but with histories 1"),
        ({"columns": {"k": 0.1}}, "k is not 0, but with histories 0 and learned False"),
    ],
)
def test_tables_that_no_chain_can_run_as_written(fields, says):
    with pytest.raises(InputError, match=says):
        StepTable.from_columns(**({"sampler": "mine", "timesteps": np.array([9, 0]), "columns": {}} | fields))


def test_a_table_may_ascend():
    assert list(ddim_inversion(COSINE, np.array([999, 5])).timesteps) == [5, 999]
