"""The four prediction types are one thing said in four ways."""

from itertools import product

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.prediction import convert_prediction, from_x_start, to_x_start, x_start_coefficients
from diffusion.process import PREDICTION_TYPES

ALPHA_BAR = np.array([0.9999, 0.7, 0.02])
X_START, EPS = np.array([0.3, -0.8, 1.0]), np.array([-1.2, 0.1, 2.0])
X_T = np.sqrt(ALPHA_BAR) * X_START + np.sqrt(1 - ALPHA_BAR) * EPS
TRUTH = {
    "epsilon": EPS,
    "sample": X_START,
    "v_prediction": np.sqrt(ALPHA_BAR) * EPS - np.sqrt(1 - ALPHA_BAR) * X_START,
    "score": -(X_T - np.sqrt(ALPHA_BAR) * X_START) / (1 - ALPHA_BAR),  # ∇ ln N(x_t; √ᾱ x_0, 1 − ᾱ)
}


@pytest.mark.parametrize(("from_type", "to_type"), list(product(PREDICTION_TYPES, repeat=2)))
def test_conversion_between_every_pair(from_type, to_type):
    converted = convert_prediction(TRUTH[from_type], from_type, to_type, X_T, ALPHA_BAR)
    np.testing.assert_allclose(converted, TRUTH[to_type], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_x_start_and_back(kind):
    np.testing.assert_allclose(to_x_start(TRUTH[kind], kind, X_T, ALPHA_BAR), X_START, rtol=1e-12)
    np.testing.assert_allclose(from_x_start(X_START, kind, X_T, ALPHA_BAR), TRUTH[kind], rtol=1e-10, atol=1e-12)


def test_sample_and_v_prediction_hold_where_no_signal_is_left():
    assert x_start_coefficients("sample", np.array(0.0)) == (0.0, 1.0)
    assert x_start_coefficients("v_prediction", np.array(0.0)) == (0.0, -1.0)


def test_unknown_type_is_refused():
    with pytest.raises(InputError, match="'flow'"):
        x_start_coefficients("flow", ALPHA_BAR)
