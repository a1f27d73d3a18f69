"""The HTTP server: one that finishes what it took when it is terminated, and stops when it is terminated twice."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from commands.signals import ENDING, note_signal
from diffusion.errors import InputError
from runtime.serve.worker import Worker

GRACE_S = 5.0
"""Seconds in which a service that stops sends its last answers."""


class DrainingServer(uvicorn.Server):
    """The first signal that ends a program lets no new request in and waits for the others; the second stops.

    A client that sends only half of a request, or does not read its answer, has `grace_s` from the second on.

    Args:
        app: the endpoints.
        worker: of the app.
        grace_s: seconds.

    Attributes:
        stopped: whether it was told twice.
    """

    def __init__(self, app: FastAPI, worker: Worker, grace_s: float = GRACE_S) -> None:
        super().__init__(
            uvicorn.Config(
                app, lifespan="off", log_config=None, access_log=False, server_header=False, timeout_keep_alive=30
            )
        )
        self._worker, self._grace_s, self.stopped = worker, grace_s, False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        self._loop = asyncio.get_running_loop()
        # uvicorn takes care of the others; under nohup this one is ignored.
        of_main_thread = threading.current_thread() is threading.main_thread()
        if of_main_thread and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self.handle_exit)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn's, which would raise the signal anew in the end; here it is answered."""
        del frame
        if sig not in ENDING:
            return
        note_signal(sig)
        if self.should_exit:
            self.stopped = True
            self._worker.halt()  # the requests are answered with an error, which ends their connections
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.call_later, self._grace_s, self._hang_up)
        self._worker.drain()
        self.should_exit = True

    def _hang_up(self) -> None:
        """End the connections that are left, and with them what waits for their clients."""
        self.force_exit = True
        for connection in list(self.server_state.connections):
            if (transport := connection.transport) is not None:
                transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before an engine is opened for nothing.

    Raises:
        InputError: an address that is not this machine's, or a port that is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        # Python adds the address to what the system says of it, and numbers a name that is not found otherwise.
        why = error.strerror if isinstance(error, socket.gaierror) or not error.errno else os.strerror(error.errno)
        raise InputError(f"cannot listen on {host}:{port} ({why}); give another --host or --port") from None


def url_of(sock: socket.socket) -> str:
    """Where it is reached."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
