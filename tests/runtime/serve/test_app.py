"""The endpoints, over HTTP on this machine."""

import base64
import io
import json
import re
import threading

import httpx
import numpy as np
import pytest
from PIL import Image

from diffusion.conditions import Condition
from diffusion.noise_schedule import NoiseSchedule
from runtime.images import draw_grid, quantize
from runtime.serve.image_request import ImageRequest
from runtime.serve.worker import MAX_FAILURES
from tests.runtime.device.host_network import HostNetwork
from tests.runtime.serve.conftest import running_service, until
from tests.runtime.serve.requests_of_tests import a_process, expected_x

TOKEN = "a-token-of-some-length"


def expected_images(service, **fields):
    return quantize(expected_x(HostNetwork(service.engine.process), ImageRequest(**fields), 3))


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def events_of(text):
    """(name, fields) of each event."""
    found = []
    for part in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in part.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_json_has_the_images_of_runtime_sample_and_what_reproduces_them(service):
    fields = {"num": 5, "seed": 2**64 - 1, "start": 7, "sampler": "ddim", "steps": 6}
    answer = service.post(**fields)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    images = np.stack([pixels(base64.b64decode(text)) for text in found["images"]])
    np.testing.assert_array_equal(images, expected_images(service, **fields)[..., 0])
    assert found["request"] == fields
    assert found["engine"] == {"name": "host", "precision": "fp32", "sha256": "0" * 64}
    again = service.post(**found["request"])
    assert again.content == answer.content


def test_png_and_npz(service):
    fields = {"num": 4, "seed": 3, "steps": 5}
    expected = expected_images(service, **fields)
    grid = service.post("image/png", **fields)
    assert grid.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(pixels(grid.content), np.asarray(draw_grid(expected)))
    one = service.post("image/png", seed=3, steps=5)
    np.testing.assert_array_equal(pixels(one.content), expected[0, ..., 0])
    arrays = service.post("application/x-npz", **fields)
    with np.load(io.BytesIO(arrays.content)) as loaded:
        np.testing.assert_array_equal(loaded["arr_0"], expected)


def test_events_show_progress_and_previews_and_end_with_the_images(service):
    fields = {"num": 2, "seed": 1, "steps": 6}
    answer = service.post("text/event-stream", **fields, preview_every=2)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert [name for name, _ in events[:-1]] == ["progress"] * (len(events) - 1)
    assert events[-1][0] == "images"
    assert events[-1][1] == service.post(**fields).json()
    progress = [each["steps_done"] for _, each in events[:-1]]
    assert progress == sorted(progress)
    previews = [preview for _, each in events[:-1] for preview in each["previews"]]
    assert {each["place"] for each in previews} == {0, 1}
    assert all(pixels(base64.b64decode(each["png"])).shape == (3, 4) for each in previews)


def test_concurrent_requests_share_the_batch_and_get_their_own_images(service):
    service.engine.is_open.clear()
    answers = {}

    def ask(seed):
        answers[seed] = service.post("application/x-npz", seed=seed, steps=8 + seed % 2, num=1 + seed % 3)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(9)]
    for thread in threads:
        thread.start()
    until(lambda: service.worker.waiting + service.worker.occupied == 18)
    service.engine.is_open.set()
    for thread in threads:
        thread.join()
    for seed, answer in answers.items():
        with np.load(io.BytesIO(answer.content)) as loaded:
            expected = expected_images(service, seed=seed, steps=8 + seed % 2, num=1 + seed % 3)
            np.testing.assert_array_equal(loaded["arr_0"], expected)
    assert service.metric("ddpm_rt_images_total") == 18


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"num": 0}, "num: Input should be greater than or equal to 1"),
        ({"num": 257}, "num is 257, this service draws at most 256 images for a request"),
        ({"seed": 2**64}, "seed: Input should be less than or equal to"),
        ({"seed": "1"}, "seed: Input should be a valid integer"),
        ({"start": 2**64 - 1, "num": 2}, "start is 18446744073709551615"),
        ({"sampler": "/etc/passwd.json"}, "sampler is '/etc/passwd.json', expected one of ddpm, ddim,"),
        ({"steps": 41}, "steps is 41"),
        ({"steps": 5, "timesteps": [3, 2]}, "steps and timesteps were both given"),
        ({"timesteps": [3, 3]}, "timesteps"),
        ({"spacing": "odd"}, "spacing"),
        ({"sampler": "ddpm", "eta": 0.5}, "eta"),
        ({"classes": [1]}, "the network is unconditional"),
        ({"conditions": {"z": [[1], [1, 2]]}}, "condition z was given"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"deadline_s": 700.0}, "deadline_s is 700, expected at most 600"),
    ],
)
def test_what_cannot_be_run_is_refused_with_one_line(service, body, says):
    answer = service.post(**body)
    assert answer.status_code == 422
    assert says in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]
    assert service.engine.calls == 0


def test_bodies_that_are_no_request(service):
    def post(content, kind="application/json"):
        return service.http.post("/v1/images", content=content, headers={"Content-Type": kind})

    assert post(b"{").status_code == 422
    assert post(b"[]").status_code == 422
    assert post(b"\xff\xfe").status_code in (400, 422)
    assert post(b'{"num": 1}', "text/plain").status_code == 422  # a form of somebody's page can send this
    assert post(b"[" * 100_000).status_code in (400, 422)
    assert post(b" " * (5 << 20)).status_code == 413
    assert post(b'{"guidance": NaN}').status_code == 422
    assert service.post("video/mp4").status_code == 406
    assert service.http.get("/healthz").status_code == 200


def test_half_a_surrogate_pair_is_refused_as_everything_else(service):
    for body in (rb'{"spacing": "\ud800"}', rb'{"\ud800": 1}', rb'{"conditions": {"\ud800": 1}}'):
        answer = service.http.post("/v1/images", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        assert answer.json()["detail"]


def test_a_chain_that_float32_cannot_hold_is_refused_and_breaks_nothing():
    schedule = NoiseSchedule.make("linear", 60, beta_start=0.9, beta_end=0.999)
    with running_service(a_process(schedule=schedule)) as running:
        for _ in range(MAX_FAILURES):
            answer = running.post()
            assert answer.status_code == 422
            assert "too large for float32" in answer.json()["detail"]
        assert running.post(timesteps=[5, 0]).status_code == 200


def test_conditions():
    label = Condition("y", "int64", classes=3, null=3)
    process = a_process(conditions=(label, Condition("guidance", "float32", default=1.0)))
    with running_service(process) as service:
        fields = {"num": 4, "steps": 5, "classes": [2, None], "guidance": 3.0}
        found = service.post("application/x-npz", **fields)
        with np.load(io.BytesIO(found.content)) as loaded:
            np.testing.assert_array_equal(loaded["arr_0"], expected_images(service, **fields))
        refused = service.post(steps=5)
        assert refused.status_code == 422
        assert "draws by class and was given none" in refused.json()["detail"]


def test_a_full_queue_says_when_to_come_back():
    with running_service(num_slots=2, waiting=3) as service:
        service.engine.is_open.clear()
        asking = [threading.Thread(target=service.post, kwargs={"num": 5, "steps": 4})]
        asking[0].start()
        until(lambda: service.worker.occupied == 2)
        answer = service.post(steps=4)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert "3 samples wait, and at most 3 may" in answer.json()["detail"]
        service.engine.is_open.set()
        asking[0].join()
        assert service.post(steps=4).status_code == 200
        assert 'ddpm_rt_requests_refused_total{status="429"} 1.0' in service.http.get("/metrics").text


def test_a_deadline_is_504(service):
    service.engine.is_open.clear()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(service.post(steps=40, deadline_s=0.05)))
    asking.start()
    until(lambda: service.worker.occupied == 1)
    threading.Event().wait(0.06)
    service.engine.is_open.set()
    asking.join()
    assert answers[0].status_code == 504
    assert answers[0].json()["detail"] == "its deadline of 0.05 s has passed"


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_client_that_goes_away_frees_its_slots(service, accept):
    service.engine.is_open.clear()
    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=service.url, timeout=0.3, trust_env=False) as client:
        client.post("/v1/images", json={"num": 3, "steps": 40}, headers={"Accept": accept})
    until(lambda: service.worker._leaving or not service.worker._open)  # or gone before it began
    service.engine.is_open.set()
    until(lambda: 'ddpm_rt_requests_total{state="cancelled"} 1.0' in service.http.get("/metrics").text)
    assert service.worker.occupied == 0
    assert service.engine.calls < 40
    assert service.post(steps=5).status_code == 200


def test_a_broken_sample_is_an_error_and_no_image(service):
    service.engine.broken = (0, 13)
    answer = service.post(timesteps=[39, 13, 0])
    assert answer.status_code == 500
    assert (
        answer.json()["detail"] == "1 of 1 samples are not finite: sample 0 is not finite from row 1 (timestep 13) on"
    )
    assert events_of(service.post("text/event-stream", timesteps=[39, 13, 0]).text)[-1] == (
        "error",
        {"status": 500, "detail": answer.json()["detail"]},
    )


def test_a_failing_network_is_told_and_after_three_failures_the_service_is_broken(service):
    service.engine.fails = True
    assert service.http.get("/readyz").status_code == 200
    for _ in range(3):
        answer = service.post(steps=3)
        assert (answer.status_code, answer.json()["detail"]) == (500, "the library says no")
    until(lambda: service.http.get("/healthz").status_code == 503)
    assert "3 network calls failed" in service.http.get("/healthz").json()["detail"]
    assert service.http.get("/readyz").status_code == 503
    assert service.post(steps=3).status_code == 503


def test_one_failure_is_no_end(service):
    service.engine.fails = True
    assert service.post(steps=3).status_code == 500
    service.engine.fails = False
    for _ in range(3):
        assert service.post(steps=3).status_code == 200
    assert service.http.get("/healthz").status_code == 200


def test_the_model_says_what_may_be_asked_for(service):
    model = service.http.get("/v1/model").json()
    assert model["process"] == service.engine.process.to_json()
    assert model["slots"] == 3
    assert model["limits"] == {"images": 256, "waiting": 1024, "deadline_s": 600.0}
    assert "unipc" in model["samplers"]
    assert model["tables"] == {}


def test_without_a_token_only_this_machine_is_served_by_its_own_name(service):
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "[::1]", "127.0.0.2", "127.1.2.3:80"):
        assert service.http.get("/v1/model", headers={"Host": host}).status_code == 200
    for host in (
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "::1",
        "10.0.0.1",
        "0.0.0.0",
        "[::1].evil.example",
        "[::1",
        "127.0.0.1:80:80",
    ):
        assert service.http.get("/v1/model", headers={"Host": host}).status_code in (400, 421), host


def test_with_a_token_nothing_of_anybodys_is_seen_without_it():
    with running_service(token=TOKEN) as service:
        opened = ("/", "/page.js", "/page.css", "/docs", "/docs-files/swagger-ui.css", "/openapi.json")
        for path in ("/healthz", "/readyz", *opened):
            assert service.http.get(path, headers={"Host": "images.example"}).status_code == 200, path
        for given in ({}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}):
            for path in ("/v1/model", "/metrics"):
                assert service.http.get(path, headers=given).status_code == 401, (path, given)
            answer = service.http.post("/v1/images", json={"steps": 3}, headers=given)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        given = {"Authorization": f"Bearer {TOKEN}"}
        assert service.http.post("/v1/images", json={"steps": 3}, headers=given).status_code == 200
        assert service.http.get("/metrics", headers=given).status_code == 200


def test_samples_that_are_no_pictures_come_as_arrays():
    from diffusion.process import SampleShape

    with running_service(a_process(sample=SampleShape(2, 3, 4))) as service:
        answer = service.post(steps=3)
        assert answer.status_code == 406
        assert "2 channels" in answer.json()["detail"]
        assert service.post("application/x-npz", steps=3).status_code == 200


def test_the_view_of_the_api_comes_from_the_service_itself(service):
    page = service.http.get("/docs").text
    files = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page)
    assert len(files) == 3
    for file in files:
        assert file.startswith("/docs-files/"), file
        answer = service.http.get(file)
        assert answer.status_code == 200
        assert len(answer.content) > 1000
    assert "/openapi.json" in page
    assert service.http.get("/docs-files/../app.py").status_code == 404


def test_metrics_count_what_happened(service):
    service.post(num=2, steps=6)
    service.post("text/event-stream", num=1, steps=6, preview_every=1)
    assert service.metric("ddpm_rt_network_calls_total") == 12
    assert service.metric("ddpm_rt_sample_steps_total") == 18
    assert service.metric("ddpm_rt_step_seconds_count") == 12
    assert service.metric("ddpm_rt_first_preview_seconds_count") == 1
    assert service.metric("ddpm_rt_request_seconds_count") == 2
    assert service.metric("ddpm_rt_slots") == 3
    assert service.metric("ddpm_rt_slots_in_use") == service.metric("ddpm_rt_queue_samples") == 0


def test_the_page_needs_nothing_from_elsewhere(service):
    page = service.http.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for text in (page.text, service.http.get("/page.js").text, service.http.get("/page.css").text):
        assert "http://" not in text
        assert "https://" not in text
