"""Who may use the service: a token, or nobody but this machine."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from diffusion.errors import InputError
from diffusion.regular_files import read_regular

TOKEN_VARIABLE = "DDPM_RT_TOKEN"
MIN_TOKEN = 16
_MAX_TOKEN = 4096  # a request's headers have little more room

# What is asked for without a token: it says nothing of anybody's images.
DOCS_FILES = "/docs-files"
_OPEN = frozenset(
    {
        *("/healthz", "/readyz", "/", "/page.js", "/page.css", "/docs", "/openapi.json"),
        *(f"{DOCS_FILES}/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")),
    }
)

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def read_token(file: Path | None) -> str | None:
    """The token of the service: of a file, else of the environment variable `DDPM_RT_TOKEN`; None where there is none.

    A command line would show it to every user of the machine.

    Raises:
        InputError: a file that cannot be read, or a token that is too short or has other characters than ASCII.
    """
    if file is None:
        text, where = os.environ.get(TOKEN_VARIABLE), f"the environment variable {TOKEN_VARIABLE}"
        if text is None:
            return None
    else:
        where = f"--token-file {file}"
        try:
            text = read_regular(file, _MAX_TOKEN, "give a text file with the token alone").decode("utf-8")
        except InputError as error:
            raise InputError(f"--token-file {error}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: cannot be read ({error}); give a text file with the token alone") from None
    token = text.strip()
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"{where}: holds a token of {len(token)} characters, expected {MIN_TOKEN} or more, ASCII without spaces; "
            "make one with `python -c 'import secrets; print(secrets.token_urlsafe())'`"
        )
    return token


def check_host(host: str, token: str | None) -> None:
    """Refuse to be reached by other machines without a token. Raises InputError."""
    if token is None and not _is_loopback(host):
        raise InputError(
            f"--host is {host}, which other machines reach, and there is no token; give --token-file, or leave --host "
            "out to serve this machine alone"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware: refuses who does not have the token; where there is none, who calls this machine by other names.

    Args:
        app: what is guarded.
        token: of the service.
    """

    def __init__(self, app: Callable[[_Scope, _Receive, _Send], Awaitable[None]], token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            if self._token is not None:
                if scope["path"] not in _OPEN and not self._has_token(headers.get(b"authorization", b"")):
                    await _answer(send, 401, b"expected the header Authorization: Bearer with the token of the service")
                    return
            # Another name for this machine may be that of somebody's page (DNS rebinding); an address has no DNS.
            elif not _is_loopback(_name_of(headers.get(b"host", b""))):
                await _answer(send, 421, b"without a token the service answers to localhost, 127.0.0.1 and [::1] alone")
                return
        await self._app(scope, receive, send)

    def _has_token(self, given: bytes) -> bool:
        assert self._token is not None
        scheme, _, token = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token.encode("ascii"))


def _name_of(host: bytes) -> str:
    """A Host header without its port."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):  # an address of IPv6
        address, end, port = text[1:].partition("]")
        return address if end and (not port or port.startswith(":")) else ""
    return text.rpartition(":")[0] if ":" in text else text


async def _answer(send: _Send, status: int, detail: bytes) -> None:
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"detail":"' + detail + b'"}'})
