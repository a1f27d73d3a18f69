"""The client, against a service that runs; and what docs/service.md shows."""

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion.errors import InputError
from runtime.images import quantize
from runtime.serve import Client, ServiceError
from runtime.serve.image_request import ImageRequest
from tests.runtime.device.host_network import HostNetwork
from tests.runtime.serve.conftest import running_service, until
from tests.runtime.serve.requests_of_tests import expected_x

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
TOKEN = "a-token-of-some-length"


def expected_images(service, **fields):
    return quantize(expected_x(HostNetwork(service.engine.process), ImageRequest(**fields), 3))


def test_images_are_those_of_runtime_sample(service):
    fields = {"num": 4, "seed": 2**64 - 1, "start": 5, "sampler": "unipc", "steps": 6}
    client = Client(service.url)
    np.testing.assert_array_equal(client.sample(**fields), expected_images(service, **fields))
    *before, last = client.watch(**fields)
    np.testing.assert_array_equal(last.images, expected_images(service, **fields))
    assert last.steps_done == last.steps == 24
    assert all(image.shape == (3, 4, 1) for each in before for image in each.previews.values())
    # A reader that is slower than the chain sees the last previews alone.
    assert {0, 1, 2, 3} >= {place for each in before for place in each.previews} > set()
    assert client.model()["slots"] == 3


def test_to_stop_watching_cancels(service):
    service.engine.is_open.clear()
    for _ in Client(service.url).watch(steps=40):
        break
    until(lambda: service.worker._leaving or not service.worker._open)  # or gone before it began
    service.engine.is_open.set()
    until(lambda: 'ddpm_rt_requests_total{state="cancelled"} 1.0' in service.http.get("/metrics").text)


def test_a_refusal_has_its_status_and_its_reason(service):
    with pytest.raises(ServiceError, match="steps is 41") as caught:
        Client(service.url).sample(steps=41)
    assert caught.value.status == 422
    service.engine.broken = (0, 39)
    with pytest.raises(ServiceError, match="not finite") as caught:
        list(Client(service.url).watch(steps=3))
    assert caught.value.status == 500


def test_no_service(service):
    with pytest.raises(ServiceError, match="no answer .*Connection refused.*is `ddpm-rt serve` running there"):
        Client("http://127.0.0.1:9").sample()
    for url in ("127.0.0.1:8000", "file:///etc/passwd", "http://"):
        with pytest.raises(InputError, match="expected one such as"):
            Client(url)


def test_a_token():
    with running_service(token=TOKEN) as service:
        with pytest.raises(ServiceError, match="expected the header Authorization") as caught:
            Client(service.url).sample(steps=3)
        assert caught.value.status == 401
        assert Client(service.url, TOKEN).sample(steps=3).shape == (1, 3, 4, 1)


def test_it_comes_back_to_a_service_that_has_too_much_to_do(monkeypatch):
    with running_service(num_slots=1, waiting=0) as service:
        service.engine.is_open.clear()
        running = service.worker.submit(ImageRequest(steps=40))
        until(lambda: service.worker.occupied == 1)
        with pytest.raises(ServiceError) as caught:
            Client(service.url, patience_s=0).sample(steps=3)
        assert caught.value.status == 429
        slept = []

        def sleep(seconds):
            slept.append(seconds)
            service.engine.is_open.set()
            assert running.wait(30)

        monkeypatch.setattr("runtime.serve.client.time.sleep", sleep)
        assert Client(service.url).sample(steps=3).shape == (1, 3, 4, 1)
        assert slept == [1]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def at(url, text):
    return text.replace("http://127.0.0.1:8000", url)


def test_the_python_that_the_page_shows_runs(service, tmp_path):
    assert len(blocks("python")) >= 2
    for block in blocks("python"):
        text = at(service.url, block).replace("Client()", f"Client({service.url!r})").replace("steps=50", "steps=20")
        done = subprocess.run(
            [sys.executable, "-c", text],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_curl_that_the_page_shows_runs(service, tmp_path):
    lines = itertools.chain.from_iterable(block.replace("\\\n", " ").splitlines() for block in blocks("console"))
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ curl")]
    assert len(commands) >= 3
    for command in commands:
        text = at(service.url, command).replace('"steps": 50', '"steps": 20').replace("curl ", "curl --fail-with-body ")
        done = subprocess.run(["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
