"""An S3 on the loopback, moto's, whose answers can be made to fail: with 503, or by a reset of the connection."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "bucket"
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Slow down.</Message></Error>"


class _Handler(WSGIRequestHandler):
    def connection_dropped(self, error: BaseException, environ: object = None) -> None:
        self.close_connection = True


class LoopbackS3:
    """A WSGI application before moto's.

    Attributes:
        fault: is asked at every request, with its number, method and path, for None, `503`, `lost` (the request never
            arrives) or `unheard` (it is served, and the answer never arrives).
        faults: that there were.
    """

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self.fault: Callable[[int, str, str], str | None] = lambda number, method, path: None
        self.faults, self._number = 0, 0
        self.url = ""

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        path = environ["PATH_INFO"] + "?" + environ["QUERY_STRING"]
        fault = self.fault(self._number, environ["REQUEST_METHOD"], path)
        self._number += 1
        self.faults += fault is not None
        if fault == "503":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [_SLOW_DOWN]
        if fault == "unheard":
            b"".join(self._moto(environ, lambda *arguments: None))
        if fault is not None:
            # The handler closes it, which is a reset.
            environ["werkzeug.socket"].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise ConnectionResetError
        return self._moto(environ, start_response)

    @property
    def client(self):
        """boto3's."""
        return boto3.client("s3", endpoint_url=self.url)

    def names(self) -> set[str]:
        """Of the objects."""
        return {each["Key"] for each in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])}


@contextlib.contextmanager
def loopback_s3() -> Iterator[LoopbackS3]:
    """Start one, with an empty bucket; the environment must name credentials."""
    application = LoopbackS3()
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Handler)
    application.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        urllib.request.urlopen(f"{application.url}/moto-api/reset", data=b"").close()  # what the last one held
        application.client.create_bucket(Bucket=BUCKET)
        yield application
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
