"""How the server ends."""

import signal
import socket
import time

from tests.runtime.serve.conftest import running_service, until


def test_a_client_that_sends_half_a_request_does_not_keep_a_service_that_stops():
    with running_service(grace_s=0.3) as running:
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            until(lambda: running.server.server_state.tasks)
            running.server.handle_exit(signal.SIGTERM, None)
            time.sleep(0.5)
            assert running.thread.is_alive()  # it drains: that client may go on
            running.server.handle_exit(signal.SIGTERM, None)
            running.thread.join(10)
            assert not running.thread.is_alive()
            assert running.server.stopped
