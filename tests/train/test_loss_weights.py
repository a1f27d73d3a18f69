from __future__ import annotations

import numpy as np
import pytest

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import PREDICTION_TYPES, Process, SampleShape
from train.objective import weights_min_snr, weights_simple, x_start_error_scale

SCHEDULE = NoiseSchedule.make("linear")


def make_process(prediction_type: str, schedule: NoiseSchedule = SCHEDULE) -> Process:
    return Process(SampleShape(1, 4, 4), schedule, prediction_type)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_is_the_same_loss_of_x_start_for_every_prediction(prediction_type: str) -> None:
    process, gamma = make_process(prediction_type), 5.0
    of_x_start = weights_min_snr(process, gamma) / x_start_error_scale(process)
    np.testing.assert_allclose(of_x_start, np.minimum(SCHEDULE.snr, gamma))


def test_min_snr_on_the_predictions_own_error() -> None:
    """As Hang et al. 2023 and those after them write it down for each prediction."""
    snr, gamma = SCHEDULE.snr, 3.0
    capped = np.minimum(snr, gamma)
    expected = {
        "epsilon": capped / snr,
        "sample": capped,
        "v_prediction": capped / (snr + 1),
        "score": capped / snr * (1 - SCHEDULE.alpha_bar),
    }
    for prediction_type, weights in expected.items():
        np.testing.assert_allclose(weights_min_snr(make_process(prediction_type), gamma), weights, rtol=1e-12)


def test_simple_scores_are_weighted_to_the_error_of_epsilon() -> None:
    score, epsilon = make_process("score"), make_process("epsilon")
    np.testing.assert_allclose(
        weights_simple(score, 5.0) / x_start_error_scale(score),
        weights_simple(epsilon, 5.0) / x_start_error_scale(epsilon),
    )
    for prediction_type in ("epsilon", "sample", "v_prediction"):
        assert (weights_simple(make_process(prediction_type), 5.0) == 1.0).all()


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_the_timestep_without_signal_is_trained(prediction_type: str) -> None:
    weights = weights_min_snr(make_process(prediction_type, SCHEDULE.with_zero_terminal_snr()), 5.0)
    assert weights[-1] == 1.0
    assert 0.0 < weights[-2] < 1e-3
