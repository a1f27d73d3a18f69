"""A service that runs, on a port of this machine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.serve.app import make_app
from runtime.serve.image_request import RequestTables
from runtime.serve.metrics import Metrics
from runtime.serve.server import DrainingServer, listen, url_of
from runtime.serve.slots import Slots
from runtime.serve.worker import Limits, Worker
from tests.runtime.device.host_network import HostNetwork
from tests.runtime.serve.requests_of_tests import a_process


class Gate(HostNetwork):
    """A network that waits before each call while it is closed.

    Attributes:
        is_open: set to let calls through.
        calls: that were made.
    """

    def __init__(self, process: Any) -> None:
        super().__init__(process)
        self.is_open = threading.Event()
        self.is_open.set()
        self.calls = 0
        self.fails = False

    def predict(self, x: Any, t: Any, *conditions: Any) -> Any:
        assert self.is_open.wait(30)
        self.calls += 1
        if self.fails:
            raise RuntimeError("the library says no")
        return super().predict(x, t, *conditions)


@dataclass
class Service:
    """What runs, and an HTTP client for it."""

    engine: Gate
    worker: Worker
    server: DrainingServer
    url: str
    http: httpx.Client
    thread: threading.Thread

    def post(self, accept: str = "application/json", **body: Any) -> httpx.Response:
        return self.http.post("/v1/images", json=body, headers={"Accept": accept})

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[-1])


def until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it never holds"
        time.sleep(0.005)


@contextlib.contextmanager
def running_service(
    process: Any = None,
    num_slots: int = 3,
    token: str | None = None,
    grace_s: float = 5.0,
    tables: Sequence[Path] = (),
    **limits: Any,
) -> Iterator[Service]:
    """A service on a free port."""
    engine = Gate(process or a_process())
    metrics = Metrics()
    request_tables = RequestTables(engine.process, "fp32", files=tables)
    worker = Worker(Slots(engine, num_slots), request_tables, Limits(**limits), metrics)
    metrics.watch(worker)
    server = DrainingServer(make_app(engine, worker, metrics, token), worker, grace_s)
    sock = listen("127.0.0.1", 0)
    url = url_of(sock)
    worker.start()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        until(lambda: server.started)
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
            yield Service(engine, worker, server, url, http, thread)
    finally:
        engine.is_open.set()
        server.should_exit = server.force_exit = True
        thread.join(30)
        worker.stop()
        sock.close()
    assert not thread.is_alive()


@pytest.fixture
def service() -> Iterator[Service]:
    with running_service() as running:
        yield running
