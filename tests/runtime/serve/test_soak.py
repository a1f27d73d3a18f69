"""Many clients at once, of whom some go away and some talk nonsense: no image is lost, doubled or another's."""

import concurrent.futures
import io
import os
import random
import socket

import httpx
import numpy as np

from runtime.images import quantize
from runtime.serve.image_request import ImageRequest
from tests.runtime.device.host_network import HostNetwork
from tests.runtime.serve.conftest import until
from tests.runtime.serve.requests_of_tests import a_process, expected_x

# Ten thousand with DDPM_RT_SOAK=170.
REQUESTS = 60 * int(os.environ.get("DDPM_RT_SOAK", "1"))
CHAINS = ({"steps": 4}, {"steps": 20}, {"sampler": "dpmpp_2m", "steps": 6}, {"sampler": "unipc", "steps": 5})
_PROCESS = a_process()
_EXPECTED: dict[tuple, np.ndarray] = {}


def expected(fields):
    key = tuple(sorted(fields.items()))
    if key not in _EXPECTED:
        _EXPECTED[key] = quantize(expected_x(HostNetwork(_PROCESS), ImageRequest(**fields), 3))
    return _EXPECTED[key]


def one(url, number):
    """One client; what became of its request."""
    rng = random.Random(number)
    fields = {"num": rng.randint(1, 4), "seed": rng.randint(0, 9), "start": rng.randint(0, 3), **rng.choice(CHAINS)}
    kind = rng.choice(("images", "images", "images", "killed", "malformed", "events"))
    if kind == "malformed":
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as raw:
            raw.sendall(rng.randbytes(rng.randint(1, 200)) + b"\r\n\r\n")
        return kind
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        if kind == "killed":
            with http.stream("POST", "/v1/images", json=fields, headers={"Accept": "text/event-stream"}) as answer:
                for _ in answer.iter_raw():
                    break
            return kind
        accept = "application/x-npz" if kind == "images" else "text/event-stream"
        answer = http.post("/v1/images", json=fields, headers={"Accept": accept})
        assert answer.status_code == 200, answer.text
        if kind == "events":
            assert answer.text.count("event: images") == 1
            return kind
        with np.load(io.BytesIO(answer.content)) as arrays:
            np.testing.assert_array_equal(arrays["arr_0"], expected(fields), err_msg=str(fields))
    return kind


def test_no_image_is_lost_doubled_or_anothers(service):
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        kinds = list(pool.map(lambda number: one(service.url, number), range(REQUESTS)))
    until(lambda: service.worker.occupied == service.worker.waiting == 0 and not service.worker._open)
    text = service.http.get("/metrics").text
    done, cancelled = (
        int(float(text.split(f'ddpm_rt_requests_total{{state="{state}"}} ')[1].split()[0]))
        for state in ("done", "cancelled")
    )
    # One that was killed may have been done before.
    assert done + cancelled == len(kinds) - kinds.count("malformed")
    assert done >= kinds.count("images") + kinds.count("events") > 0
    assert kinds.count("killed") > 0
    assert service.http.get("/healthz").status_code == 200
