"""The model of Triton's Python backend, without Triton. `make triton-check` runs it in the real server."""

import importlib
import json
import sys

import numpy as np
import pytest

from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export.to_triton import TritonRequest, export_triton
from runtime.sampler import Sampler
from tests.gaussian import GaussianNetwork
from tests.runtime.serve import triton_fake
from tests.runtime.serve.conftest import until


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    process = Process(SampleShape(1, 4, 8), NoiseSchedule.make("linear"))
    engine = GaussianNetwork(process, 0.0, 0.5).save_onnx(folder / "unet.onnx")
    export_triton(TritonRequest(engine, folder / "models", slots=3, threads=1))
    return folder / "models"


def parameters_of(config):
    """The parameters of a config.pbtxt, as Triton hands them to the model."""
    lines = [line for line in config.splitlines() if line.startswith("parameters")]
    pairs = [[part for part in line.split('"') if part.strip()][1::2] for line in lines]
    return {key: {"string_value": value} for key, value in pairs}


@pytest.fixture
def model(repository, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton_fake)
    monkeypatch.syspath_prepend(str(repository / "ddpm" / "1"))
    monkeypatch.delitem(sys.modules, "runtime.serve.triton_model", raising=False)
    found = importlib.import_module("model").TritonPythonModel()
    config = {"parameters": parameters_of((repository / "ddpm" / "config.pbtxt").read_text())}
    found.initialize(
        {"model_config": json.dumps(config), "model_repository": str(repository / "ddpm"), "model_version": "1"}
    )
    yield found
    found.finalize()
    assert not found._sending.is_alive()
    sys.modules.pop("model")


def asked(model, *bodies):
    requests = [triton_fake.Request(json.dumps(body).encode()) for body in bodies]
    assert model.execute(requests) is None
    return [request.sender for request in requests]


def images_of(repository, num, seed, start=0, **fields):
    steps = fields.pop("steps")
    sampler = Sampler(repository / "ddpm" / "1" / "unet.onnx", num_steps=steps, batch_size=3, threads=1, **fields)
    return sampler.sample(-(-num // 3) * 3, seed, start)[:num]


def test_images_are_those_of_runtime_sample_whatever_else_runs(model, repository):
    bodies = [
        {"num": num, "seed": seed, "start": seed, "steps": 5 + seed, "sampler": "ddim"}
        for seed, num in enumerate((1, 2, 5, 3))
    ]
    for body, sender in zip(bodies, asked(model, *bodies), strict=True):
        assert sender.ended.wait(60)
        (response,) = sender.responses
        np.testing.assert_array_equal(response["IMAGES"], images_of(repository, **body))
        assert response["STEPS_DONE"] == response["STEPS"] == body["num"] * body["steps"]
        assert response["PREVIEWS"].shape == (0, 4, 8, 1)


def test_previews_come_before_the_images(model, repository):
    (sender,) = asked(model, {"num": 4, "seed": 1, "steps": 300, "preview_every": 10})
    assert sender.ended.wait(60)
    *before, last = sender.responses
    assert len(before) >= 1
    for each in before:
        assert each["PREVIEWS"].shape == (len(each["PREVIEW_PLACES"]), 4, 8, 1)
        assert each["IMAGES"].shape == (0, 4, 8, 1)
    done = [int(each["STEPS_DONE"][0]) for each in (*before, last)]
    assert done == sorted(done)
    np.testing.assert_array_equal(last["IMAGES"], images_of(repository, 4, 1, steps=300))


@pytest.mark.parametrize(
    ("texts", "says", "code"),
    [
        ([b'{"num": 0}'], "num: Input should be greater than or equal to 1", "INVALID_ARG"),
        ([b'{"steps": 100000}'], "steps is 100000", "INVALID_ARG"),
        ([b"{"], "body: Invalid JSON", "INVALID_ARG"),
        ([b"\xff"], "body: Invalid JSON", "INVALID_ARG"),
        ([], "REQUEST has 0 elements, expected one JSON text", "INVALID_ARG"),
        ([b'{"steps": 1000, "num": 256, "deadline_s": 0.001}'], "its deadline of 0.001 s has passed", "CANCELLED"),
    ],
)
def test_what_cannot_be_run_is_an_error(model, texts, says, code):
    request = triton_fake.Request(*texts)
    model.execute([request])
    assert request.sender.ended.wait(60)
    (error,) = request.sender.responses
    assert says in str(error)
    assert error.code == getattr(triton_fake.TritonError, code)


def test_a_client_that_goes_away_frees_its_slots(model):
    (sender,) = asked(model, {"num": 256, "steps": 1000})
    until(lambda: model._worker.occupied == 3)
    sender.is_gone = True
    assert sender.ended.wait(60)
    assert sender.responses[-1].code == triton_fake.TritonError.CANCELLED
    assert model._worker.occupied == 0


def test_too_much_is_refused_and_the_end_answers_everybody(model):
    *taken, last = asked(model, *[{"num": 256, "steps": 1000}] * 5)
    assert last.ended.wait(60)
    assert last.responses[0].code == triton_fake.TritonError.UNAVAILABLE
    assert "samples wait" in str(last.responses[0])
    model.finalize()
    for sender in taken:
        assert sender.ended.wait(60)
        assert "the service was stopped" in str(sender.responses[-1])


def test_a_response_that_cannot_be_sent_is_that_requests_end_alone(model, repository, monkeypatch):
    broken = triton_fake.Request(b'{"steps": 4}')

    def fails(response, flags=0):
        raise RuntimeError("the stream is closed")

    monkeypatch.setattr(broken.sender, "send", fails)
    model.execute([broken])
    (sender,) = asked(model, {"seed": 3, "steps": 4})
    assert sender.ended.wait(60)
    np.testing.assert_array_equal(sender.responses[0]["IMAGES"], images_of(repository, 1, 3, steps=4))
