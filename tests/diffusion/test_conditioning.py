"""The rule for networks of low precision, and what rounding a prediction does to real chains."""

from dataclasses import replace

import numpy as np
import pytest

from diffusion.conditioning import MAX_ROUNDING_ERROR, check_conditioning, rounding_error
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.reference_loop import initial_noise, reference_loop
from diffusion.samplers import make_table
from diffusion.step_table import StepTable
from tests.diffusion.samplers.networks import a_process, gaussian
from tests.kernels.numpy_step import float32_from, rounded_to

COSINE = a_process(schedule=NoiseSchedule.make("squaredcos_cap_v2"))


def rounded_prediction(prediction, precision):
    dtype = {"fp16": np.float16, "bf16": np.uint16}[precision]
    return float32_from(rounded_to(dtype, prediction.astype(np.float32))).astype(np.float64)


def moved_by_rounding(process, table, precision):
    """How far x_0 moves, root mean square, if every prediction is rounded."""
    network = gaussian(process, 0.0, 0.5)

    def rounded(x, t):
        return rounded_prediction(network(x, t), precision)

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


@pytest.mark.parametrize(("clip", "counted"), [(0.5, 0.01), (1.0, 0.02), (2.0, 0.04), (3.0, 0.06), (4.0, 0.0625)])
def test_a_clipped_row_counts_the_clip_once(clip, counted):
    # Unclipped, the row would count |b·v|·2⁻¹¹ = 0.02·6400/2048 = 0.0625, the smaller of the two from clip = 3.2 on.
    columns = {"u": [0.0, 0.0], "v": [-6400.0, 0.0], "b": [0.02, 1.0]}
    table = StepTable.from_columns("two rows", np.array([1, 0]), columns, clip=clip)
    assert rounding_error(table, "fp16") == pytest.approx(counted, rel=1e-12)
    # What does not go through x_start is not clipped: q·2⁻¹¹ on top.
    with_q = StepTable.from_columns("two rows", np.array([1, 0]), columns | {"q": [-20.48, 0.0]}, clip=clip)
    assert rounding_error(with_q, "fp16") == pytest.approx(min(counted + 0.01, 0.0725), rel=1e-12)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("mean", [0.0, 0.9])
def test_where_rounding_reaches_the_clip_x_start_is_off_by_the_clip_and_the_mean_of_data(precision, mean):
    process = replace(COSINE, clip_sample=1.0)
    table = make_table(process, "ddim", 50)
    b, u, v = (table.column(name)[0] for name in ("b", "u", "v"))
    assert rounding_error(table, precision) == abs(b) * 1.0  # the clipped term of its first row
    x = initial_noise((200, *process.sample.chw), 0, 0).astype(np.float64)
    prediction = gaussian(process, mean, 0.1)(x, np.full(200, table.timesteps[0]))
    truth, seen = (np.clip(u * x + v * p, -1, 1) for p in (prediction, rounded_prediction(prediction, precision)))
    np.testing.assert_allclose(truth, mean, rtol=0, atol=1e-4)  # nothing of the image is left to know
    off = np.abs(seen - truth).max()
    assert off == pytest.approx(1.0 + mean, abs=1e-4)
    assert off <= 2.0


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
    with pytest.raises(InputError, match="precision is 'tf32', expected one of fp32, fp16, bf16, int8"):
        check_conditioning(make_table(COSINE), "tf32")
