"""The rule for networks of low precision, and what rounding a prediction does to real chains."""

from dataclasses import replace

import numpy as np
import pytest

from diffusion.conditioning import MAX_ROUNDING_ERROR, check_conditioning, rounding_error
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.reference_loop import initial_noise, reference_loop
from diffusion.samplers import make_table
from diffusion.step import float32_from, rounded_to
from tests.diffusion.samplers.networks import a_process, gaussian

COSINE = a_process(schedule=NoiseSchedule.make("squaredcos_cap_v2"))


def moved_by_rounding(process, table, precision):
    """How far x_0 moves, root mean square, if every prediction is rounded."""
    network, dtype = gaussian(process, 0.0, 0.5), {"fp16": np.float16, "bf16": np.uint16}[precision]

    def rounded(x, t):
        prediction = network(x, t).astype(np.float32)
        return float32_from(rounded_to(dtype, prediction)).astype(np.float64)

    x = initial_noise((40, *process.sample.chw), 0, 0).astype(np.float64)
    return np.sqrt(np.mean((reference_loop(table, rounded, x) - reference_loop(table, network, x)) ** 2))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "deis", "unipc"])
@pytest.mark.parametrize("num_steps", [10, 50])
@pytest.mark.parametrize("clip_sample", [None, 1.0])
def test_the_rule_bounds_what_rounding_does_and_not_by_much(precision, sampler, num_steps, clip_sample):
    process = replace(COSINE, clip_sample=clip_sample)
    table = make_table(process, sampler, num_steps)
    bound = rounding_error(table, precision)
    # The rest of the chain about halves the first step's error for these data (std ½); a rounding error is a third of
    # its bound, root mean square; UniPC's corrector halves it again.
    assert bound / 20 < moved_by_rounding(process, table, precision) < bound


@pytest.mark.parametrize("sampler", ["ddim", "unipc"])
def test_what_the_rule_lets_pass_is_not_seen(sampler):
    for process in (a_process(), COSINE):
        for chosen in ({"num_steps": 10}, {"num_steps": 20, "lambda_min": -5.1}, {"num_steps": 100}):
            for precision in ("fp16", "bf16"):
                table = make_table(process, sampler, **chosen)
                if rounding_error(table, precision) <= MAX_ROUNDING_ERROR:
                    assert moved_by_rounding(process, table, precision) < 0.02  # 2.5 of 255 gray levels


def test_unclipped_it_is_g_times_the_unit_of_rounding():
    table = make_table(COSINE, "ddim", 50)
    assert rounding_error(table, "fp16") == table.conditioning * 2**-11
    assert rounding_error(table, "bf16") == table.conditioning * 2**-8


def test_refusals_name_what_helps_and_it_helps():
    with pytest.raises(InputError, match=r"fp16 moves a step by up to 0\.31 .*clip x_start.*--lambda-min.*fp32"):
        check_conditioning(make_table(COSINE, "ddim", 50), "fp16")
    for precision in ("fp16", "bf16"):
        check_conditioning(make_table(a_process(), "ddim", 10), precision)
        check_conditioning(make_table(replace(COSINE, clip_sample=1.0), "ddim", 50), precision)
    check_conditioning(make_table(COSINE, "ddim", 50, lambda_min=-5.1), "fp16")
    check_conditioning(make_table(COSINE, "ddim", 50), "fp32")
    check_conditioning(make_table(replace(COSINE, prediction_type="v_prediction"), "ddim", 10), "bf16")


def test_a_clip_is_not_advised_where_there_is_one():
    with pytest.raises(InputError) as refused:
        check_conditioning(make_table(replace(COSINE, clip_sample=1.0), "ddim", 5), "fp16")
    assert "clip x_start" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_unknown_precision():
    with pytest.raises(InputError, match="precision is 'int8', expected one of fp32, fp16, bf16"):
        check_conditioning(make_table(COSINE), "int8")
