"""Ray Serve: what a replica is, how it is refused, and two of them here, of which one is killed under load."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from runtime.sampler import Sampler
from runtime.serve.ray_serve import Replica, Settings, build
from tests.gaussian import GaussianNetwork
from tests.runtime.serve.ray_cluster import NUM, REQUESTS, STEPS

ROOT = Path(__file__).parents[3]
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    process = Process(SampleShape(1, 8, 8), NoiseSchedule.make("linear"))
    return GaussianNetwork(process, 0.0, 0.5).save_onnx(tmp_path_factory.mktemp("ray") / "unet.onnx")


def settings(engine, **changes):
    return Settings(engine=engine, **changes).model_dump(mode="json")


def test_a_replica_serves_whoever_has_the_token_alone(engine, tmp_path, monkeypatch):
    monkeypatch.delenv("DDPM_RT_TOKEN", raising=False)
    with pytest.raises(InputError, match="no token: Ray's proxy may be reached by others"):
        Replica(settings(engine))
    (tmp_path / "token").write_text(TOKEN)
    replica = Replica(settings(engine, token_file=tmp_path / "token", slots=3))
    guards = [each for each in replica.__serve_build_asgi_app__().user_middleware if "token" in each.kwargs]
    assert [each.kwargs["token"] for each in guards] == [TOKEN]
    replica.check_health()
    replica._worker.broken = "three network calls failed"
    with pytest.raises(RuntimeError, match="three network calls failed"):
        replica.check_health()
    replica.__del__()
    assert not replica._worker._thread.is_alive()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine": "unet.onnx"}, "engine is unet.onnx, expected an absolute path"),
        ({"max_replicas": 1, "min_replicas": 2}, "max_replicas is 1, expected at least min_replicas, 2"),
        ({"token_file": "/token", "without_token": True}, "token_file and without_token were both given"),
        ({"slots": 0}, "greater than or equal to 1"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_make_no_sense(changes, says):
    with pytest.raises(ValidationError, match=says):
        Settings(**({"engine": "/unet.onnx"} | changes))


def test_ray_holds_nothing_back_and_starts_more_replicas_where_the_slots_are_full():
    application = build(Settings(engine="/unet.onnx", slots=4, max_waiting=100, max_replicas=3, cpus=2))
    deployment = application._bound_deployment
    assert deployment.max_ongoing_requests == 105
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 3, 4)
    assert deployment.ray_actor_options["num_cpus"] == 2


def test_the_file_that_docs_show_is_one():
    given = yaml.safe_load((ROOT / "docs" / "deploy" / "ray-serve.yaml").read_text())
    (application,) = ServeDeploySchema(**given).applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    assert Settings(**application.args).max_replicas == 4


@pytest.mark.slow
def test_one_of_two_replicas_is_killed_and_no_image_is_lost_or_wrong(engine, tmp_path):
    folder = tempfile.mkdtemp(prefix="ray")  # sockets have short names
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.runtime.serve.ray_cluster", str(engine), folder, str(tmp_path / "result")],
            cwd=ROOT,
            env=os.environ | {"HOME": folder, "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "result").read_text())
    sampler = Sampler(engine, num_steps=STEPS, batch_size=8)
    images = sampler.sample(REQUESTS + NUM + 4, seed=5)  # in batches of eight, as the slots
    expected = [hashlib.sha256(images[start : start + NUM].tobytes()).hexdigest() for start in range(REQUESTS)]
    assert sorted(each["start"] for each in found["first"]) == list(range(REQUESTS))
    failed = [each for each in found["first"] if each["status"] != 200]
    assert all(each["status"] in (500, 503) and each["said"] for each in failed), failed
    assert len(failed) <= REQUESTS // 2
    answered = [each for each in found["first"] + found["again"] if each["status"] == 200]
    assert {each["start"]: each["digest"] for each in answered} == dict(enumerate(expected))
    killed, other = found["before"]
    assert killed not in found["after"]
    assert other in found["after"]
    assert len(found["after"]) == 2
