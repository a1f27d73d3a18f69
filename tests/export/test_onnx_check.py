"""The comparison that decides whether a file is published: what it must let pass and what it must catch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from commands.errors import VerificationError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export.onnx_check import TOLERANCE, SampleError, Verification, batches_of_timesteps, relative_error, verify_onnx

SHAPE = (2, 4, 4)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network in closed form: prediction = x/2 + t/1000."""
    nodes = [
        helper.make_node("Mul", ["x", "half"], ["h"]),
        helper.make_node("Mul", ["t", "thousandth"], ["level"]),
        helper.make_node("Reshape", ["level", "column"], ["levels"]),
        helper.make_node("Add", ["h", "levels"], ["prediction"]),
    ]
    constants = [
        helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
        helper.make_tensor("thousandth", TensorProto.FLOAT, [], [1e-3]),
        helper.make_tensor("column", TensorProto.INT64, [4], [-1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "closed_form",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE]),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N"]),
        ],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["N", *SHAPE])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    target = tmp_path_factory.mktemp("closed_form") / "unet.onnx"
    onnx.save(model, target)
    return target


def process(num_train_timesteps: int = 1000) -> Process:
    return Process(SampleShape(*SHAPE), NoiseSchedule.make("linear", num_train_timesteps))


def truth(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    return x * np.float32(0.5) + (t * np.float32(1e-3))[:, None, None, None]


def test_equal_networks_pass(path: Path) -> None:
    result = verify_onnx(path, process(), truth)
    assert result.passed
    assert result.worst <= 1e-7
    assert {error.batch for error in result.errors} == {1, 2, 5}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, t: truth(x, t + 1),  # timesteps counted from 1
        lambda x, t: truth(x, t[::-1]),  # timesteps of other samples of the batch
        lambda x, t: truth(x, np.broadcast_to(t[:1], t.shape)),  # the first timestep for all
        lambda x, t: truth(x, np.minimum(t, 998)),  # the last timestep alone
        lambda x, t: truth(x, t) * np.float32(1 + 2e-5),  # twice the tolerance
        lambda x, t: truth(x, t) + np.where(np.arange(len(t)) == 4, 1e-3, 0)[:, None, None, None],  # in batches of 5
    ],
    ids=["off by one", "reversed", "first", "last", "scaled", "fifth sample"],
)
def test_differences_are_caught(path: Path, wrong: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    with pytest.raises(VerificationError, match=r"nothing was published\n +t +batch +relative error") as error:
        verify_onnx(path, process(), lambda x, t: wrong(x, t).astype(np.float32))
    assert "too large" in str(error.value)


def test_half_the_tolerance_passes(path: Path) -> None:
    result = verify_onnx(path, process(), lambda x, t: truth(x, t) * np.float32(1 + TOLERANCE / 2))
    assert TOLERANCE / 3 < result.worst < TOLERANCE


def test_prediction_that_is_not_finite_is_caught(path: Path) -> None:
    def diverged(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.where(t[:, None, None, None] == 999, np.float32(np.nan), truth(x, t)).astype(np.float32)

    with pytest.raises(VerificationError, match=r"differs from PyTorch by up to nan"):
        verify_onnx(path, process(), diverged)


def test_shape_is_compared(path: Path) -> None:
    with pytest.raises(VerificationError, match=r"shape \(1, 2, 4, 4\), PyTorch's \(1, 4, 4, 4\)"):
        verify_onnx(path, process(), lambda x, t: np.concatenate([truth(x, t)] * 2, axis=1))


@pytest.mark.parametrize("num_train_timesteps", [1, 2, 3, 50, 1000, 4000])
def test_batches_cover_the_timesteps_in_every_size(num_train_timesteps: int) -> None:
    batches = list(batches_of_timesteps(num_train_timesteps))
    last = num_train_timesteps - 1
    for size in (1, 2, 5):
        seen = {timestep for batch in batches if len(batch) == size for timestep in batch}
        assert {0, min(1, last), num_train_timesteps // 2, last} <= seen
        assert max(seen) == last
        assert min(seen) == 0
    assert {len(batch) for batch in batches} == {1, 2, 5}
    assert num_train_timesteps < 10 or all(len(set(batch)) == len(batch) for batch in batches)


def test_relative_error_of_a_silent_network() -> None:
    # ‖Δ‖ = 1e-5·√n against max(0, 1e-3·√n)
    zero = np.zeros((3, 8, 8), dtype=np.float32)
    assert relative_error(zero + np.float32(1e-5), zero) == pytest.approx(1e-2, rel=1e-6)
    assert relative_error(zero, zero) == 0.0
    assert relative_error(zero + 2, zero + 1) == pytest.approx(1.0)
    assert math.isnan(relative_error(zero * np.nan, zero))


def test_report_is_strict_json() -> None:
    errors = (SampleError(999, 1, math.nan), SampleError(0, 1, 2e-6), SampleError(5, 2, math.inf))
    result = Verification(errors, TOLERANCE, "a backend")
    assert not result.passed
    assert math.isnan(result.worst) or result.worst == math.inf
    fields = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert [sample["relative_error"] for sample in fields["samples"]] == [None, 2e-6, None]
    assert [line.split()[0] for line in result.table().splitlines()] == ["t", "0", "5", "999"]
