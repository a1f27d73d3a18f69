"""The gate: what passes, what does not, and that every network in it is compared."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export.fold_time import fold_time
from export.graph_facts import name_nodes
from export.low_precision import to_mixed_precision
from export.plan_verification import PlanVerification, compare_predictions, verify_network
from runtime.engines.trajectories import make_golden
from runtime.formats.golden import Golden
from runtime.formats.precision import PRECISIONS
from tests.gaussian import GaussianNetwork

PROCESS = Process(SampleShape(1, 6, 6), NoiseSchedule.make("linear", 50))
NETWORK = GaussianNetwork(PROCESS, 0.2, 0.5)


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = NETWORK.save_onnx(tmp_path_factory.mktemp("gaussian") / "unet.onnx")
    model, _ = fold_time(onnx.load(path), 50)
    name_nodes(model)
    return model


def golden(precision: str) -> Golden:
    return make_golden(PROCESS, lambda x, t: NETWORK(x, t).astype(np.float32), precision)


def in_precision(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    if precision == "fp32":
        return model
    return to_mixed_precision(model, precision, (golden("fp32").x[:3, 0], golden("fp32").timesteps[:3])).model


def verify(model: onnx.ModelProto, precision: str) -> PlanVerification:
    return verify_network(model, golden(precision), PROCESS, precision, "the closed form")


@pytest.mark.parametrize(
    ("precision", "compared"),
    [("fp32", ["the fp32 graph"]), ("fp16", ["the fp16 graph", "rounded"]), ("bf16", ["rounded"])],
)
def test_every_precision(precision: str, compared: list[str], float32: onnx.ModelProto) -> None:
    result = verify(in_precision(float32, precision), precision)
    assert result.passed
    assert not result.executed
    assert len(result.compared) == len(compared)
    assert all(name.endswith(end) for name, end in zip(result.compared, compared, strict=True))
    # The last is the strictest, and the one that is measured by timestep; Polygraphy measures by batch.
    assert list(result.compared)[-1] == result.ran_on
    assert 0.3 * result.median <= result.compared[result.ran_on] <= 3 * result.worst
    assert result.worst < PRECISIONS[precision].tolerance
    assert len(result.errors) == 16
    fields = json.loads(json.dumps(result.record().to_json(), allow_nan=False))
    assert (fields["passed"], fields["executed"]) == (True, False)
    assert fields["compared_by"].startswith("Polygraphy ")
    assert list(fields["compared_relative_error"]) == list(result.compared)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_error_at_some_timesteps_stands_out(precision: str, float32: onnx.ModelProto) -> None:
    damaged = onnx.ModelProto()
    damaged.CopyFrom(float32)
    for table in damaged.graph.initializer:
        values = numpy_helper.to_array(table).copy()
        if values.shape[:1] == (50,):
            values[40:] *= 1 + 0.9 * PRECISIONS[precision].tolerance
            table.CopyFrom(numpy_helper.from_array(values, table.name))
    result = verify(in_precision(damaged, precision), precision)
    assert not result.passed
    assert {error.timestep >= 40 for error in result.errors if not error.passed} == {True}
    assert "too large" in result.table()


def test_polygraphy_is_asked_about_every_network(float32: onnx.ModelProto) -> None:
    reference = golden("fp32")

    def exact(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return NETWORK(x, t).astype(np.float32)

    def wrong(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return exact(x, t) * np.where(t == 49, 1.001, 1).astype(np.float32)[:, None, None, None]

    def broken(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.zeros_like(x) * np.where(t == 0, np.nan, 1).astype(np.float32)[:, None, None, None]

    networks = {"exact": exact, "wrong": wrong, "broken": broken}
    found = compare_predictions(networks, reference, "fp32", "the closed form")
    assert found["exact"] == 0
    assert 4e-4 < found["wrong"] < 1.001e-3  # over a batch, of which one sample has that error
    assert math.isnan(found["broken"])
    measured = verify_network(float32, reference, PROCESS, "fp32", "the closed form")
    for error in found.values():
        result = replace(measured, compared={"one": error}, executed=True)
        assert result.passed == (error == 0)
    assert '"one": null' in json.dumps(
        replace(measured, compared={"one": math.nan}, executed=True).record().to_json(), allow_nan=False
    )
