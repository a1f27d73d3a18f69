"""`python -m runtime.serve` as a process: how it starts, how it fails to, and how it ends."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from runtime.serve.__main__ import main
from runtime.serve.guard import read_token
from tests.runtime.serve.conftest import until

ROOT = Path(__file__).parents[3]


@contextlib.contextmanager
def serving(folder, *arguments):
    """The process, and its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.serve", "--port", "0", "--threads", "1", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found:
                break
        else:
            raise AssertionError("".join(lines))
        yield process, found.group()
    finally:
        process.kill()
        process.communicate()


def ask(url, answers, **body):
    answers.append(httpx.post(f"{url}/v1/images", json=body, timeout=60, trust_env=False))


def begun(url):
    """A request of a hundred batches of 1000 rows that runs."""
    answers = []
    thread = threading.Thread(target=ask, args=(url, answers), kwargs={"num": 800, "sampler": "ddpm"})
    thread.start()
    until(lambda: "ddpm_rt_slots_in_use 8.0" in httpx.get(f"{url}/metrics", trust_env=False).text)
    return thread, answers


def test_the_first_sigterm_drains(folder, network_is_known):
    with serving(folder, "--json", "--max-images", "800") as (process, url):
        thread, answers = begun(url)
        process.send_signal(signal.SIGTERM)
        thread.join(60)
        assert answers[0].status_code == 200
        assert len(answers[0].json()["images"]) == 800
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert json.loads(out) == {"url": url}
        logged = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
        assert [(each["message"], each["num"], each["steps"]) for each in logged] == [("request done", 800, 1000)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_second_signal_stops(folder, network_is_known, number):
    with serving(folder, "--max-images", "100000", "--max-waiting", "100000") as (process, url):
        answers = []
        thread = threading.Thread(target=ask, args=(url, answers), kwargs={"num": 100_000})
        thread.start()
        until(lambda: "ddpm_rt_slots_in_use 8.0" in httpx.get(f"{url}/metrics", trust_env=False).text)
        process.send_signal(number)
        until(lambda: _refuses(url))
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        thread.join(60)
        assert answers[0].status_code == 503
        assert answers[0].json()["detail"] == "the service was stopped before the images were done"
        assert process.returncode == 128 + number, err
        assert "runtime.serve: stopped; 1 requests were not finished" in err
        assert "Traceback" not in err


def _refuses(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as sock:
        return sock.connect_ex((host, int(port))) != 0


def said(capsys):
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--engine", "nothing.onnx"], "nothing.onnx: no such file"),
        (["--slots", "0"], "--slots is 0, expected at least 1"),
        (["--port", "65536"], "--port is 65536, expected at most 65535"),
        (["--threads", "1000000"], "--threads is 1000000, expected at most 1024"),
        (["--deadline", "0"], "--deadline is 0.0, expected more than 0"),
        (["--host", "0.0.0.0"], "--host is 0.0.0.0, which other machines reach, and there is no token"),
        (["--host", "images.example"], "--host is images.example, which other machines reach"),
        (["--token-file", "no.txt"], "--token-file no.txt: no such file"),
        (["--device", "cuda", "--engine", "unet.xml"], "unet.xml: runs on the CPU, but --device is cuda"),
    ],
)
def test_it_fails_to_start_as_clearly_as_sampling(folder, capsys, monkeypatch, arguments, says):
    monkeypatch.delenv("DDPM_RT_TOKEN", raising=False)
    assert main(["--port", "0", *arguments]) == 2
    assert says in said(capsys)


def test_a_port_that_is_taken(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in said(capsys)


def test_a_token_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("DDPM_RT_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("DDPM_RT_TOKEN", "0123456789abcdef")
    assert read_token(None) == "0123456789abcdef"
    (tmp_path / "token").write_text("fedcba9876543210\n")
    assert read_token(tmp_path / "token") == "fedcba9876543210"
    for bad in ("short", "with spaces in its middle", "ünïcödé-ünïcödé-ünïcödé", ""):
        (tmp_path / "token").write_text(bad)
        with pytest.raises(ValueError, match="expected 16 or more"):
            read_token(tmp_path / "token")
