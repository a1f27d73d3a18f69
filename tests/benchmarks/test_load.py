"""`benchmarks.load` counts what it says, and its peer draws what diffusers draws."""

import asyncio
import contextlib
import io
import json
import shlex
import socket
import threading
from collections import Counter

import httpx
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image

from benchmarks.load.__main__ import main
from benchmarks.load.clients import Mixture, Outcome, closed_loop, open_loop
from benchmarks.load.pipeline_service import make_pipeline_app
from benchmarks.load.services import RunningService
from benchmarks.load.summary import slope_per_minute, summarize
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from tests.checkpoints import save_tiny_checkpoint
from tests.gaussian import GaussianNetwork


def image(value):
    return np.full((2, 2), value, np.uint8)


def test_what_is_lost_doubled_or_wrong_is_counted():
    outcomes = [
        Outcome(0, 20, 200, 1.0, image(0), 0.25, 5),
        Outcome(1, 20, 200, 2.0, image(9)),  # wrong
        Outcome(2, 20, 200, 3.0, image(0)),  # somebody else's
        Outcome(3, 100, 200, 4.0, image(7)),  # nobody knows what it must be
        Outcome(4, 20, 0),
        Outcome(5, 20, 429),
        Outcome(6, 20, 500),
        Outcome(7, 20),
    ]
    found = summarize(outcomes, {20: np.stack([image(value)[..., None] for value in range(3)])}, 2.0)
    assert {name: found[name] for name in ("requests", "answered", "lost", "refused", "failed")} == {
        "requests": 8, "answered": 4, "lost": 1, "refused": 1, "failed": 1,
    }  # fmt: skip
    assert found["not_answered_in_time"] == 1
    assert (found["doubled"], found["checked"], found["wrong"]) == (1, 3, 2)
    assert found["images_per_s"] == 2.0
    assert (found["p50_s"], found["p95_s"]) == (None, None)  # of what was never answered, nothing is known
    assert found["by_steps"]["100"] == {"p50_s": 4.0, "p95_s": 4.0}
    assert (found["first_preview_p50_s"], found["first_preview_max_steps"]) == (0.25, 5)


def test_the_slope_of_memory():
    assert slope_per_minute([0.0, 30.0, 60.0], [5.0, 6.0, 7.0]) == pytest.approx(2.0)
    assert slope_per_minute([0.0, 1.0], [5.0, 6.0]) is None


def test_clients_notice_what_a_service_does_not_answer():
    """A service that hangs up on every second connection and is silent on the others."""
    kept, ended = [], []

    def accept(server):
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = server.accept()
                if len(kept) > len(ended):
                    connection.recv(4096)
                    connection.close()
                    ended.append(connection)
                else:
                    kept.append(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        url, rng = f"http://127.0.0.1:{server.getsockname()[1]}", np.random.default_rng(0)
        outcomes = asyncio.run(open_loop(url, 8, 100.0, 0.1, Mixture([2], 0.0, rng), rng, 0.5))
        outcomes += asyncio.run(closed_loop(url, 1, 0.1, Mixture([2], 0.0, rng), 0.5))
    found = Counter(each.status for each in outcomes)
    assert set(found) == {0, -1}
    assert (found[0], found[-1]) == (len(ended), len(outcomes) - len(ended))
    for connection in kept:
        connection.close()


def test_report(tmp_path, capsys):
    process = Process(SampleShape(1, 8, 8), NoiseSchedule.make("linear"))
    engine = GaussianNetwork(process, 0.0, 0.5).save_onnx(tmp_path / "unet.onnx")
    out = tmp_path / "load.json"
    flags = "--steps 2 5 --slots 2 --clients 3 --parts 0.5 --seconds 0.3 --previews 0.5 --services"
    assert main(["--engine", str(engine), *shlex.split(flags), "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == report
    assert [(each["load"], each["service"]) for each in report["results"]] == [("closed", "slots"), ("open", "slots")]
    closed, _ = report["results"]
    assert closed["answered"] == closed["requests"] > 0
    assert closed["checked"] > 0
    assert closed["first_preview_max_steps"] <= 5
    assert closed["cpu_s_per_image"] >= 0
    assert min(closed["memory_mib"]) > 1
    assert all(each[name] == 0 for each in report["results"] for name in ("lost", "doubled", "wrong", "failed"))


def test_a_service_that_does_not_start(tmp_path):
    with pytest.raises(InputError, match="the service slots did not start; it said: .*no such file"):
        RunningService("slots", tmp_path / "none.onnx", None, 2)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--services", "diffusers"], "runs a checkpoint; give --checkpoint"),
        (["--clients", "1025"], "expected at most 1024"),
        (["--parts", "1.5"], "expected more than 0 and at most 1"),
        (["--seconds", "nan"], "expected more than 0"),
        (["--engine", "none.onnx"], "none.onnx: no such file"),
    ],
)
def test_bad_input(capsys, flags, says):
    try:
        code = main(flags)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert says in capsys.readouterr().err


def test_the_peer_draws_what_the_pipeline_draws(tmp_path):
    save_tiny_checkpoint(tmp_path / "checkpoint")
    app = make_pipeline_app(tmp_path / "checkpoint")

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://peer") as http:
            return await asyncio.gather(
                *(http.post("/v1/images", json={"seed": 3, "start": start, "steps": 3}) for start in (0, 1))
            )

    answers = asyncio.run(ask())
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "checkpoint", use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    for start, answer in enumerate(answers):
        (expected,) = pipeline(num_inference_steps=3, generator=torch.Generator().manual_seed(3 + start)).images
        with Image.open(io.BytesIO(answer.content)) as found:
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
