"""A client of the service: needs the standard library, NumPy and Pillow."""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any

import numpy as np
from PIL import Image

from diffusion.errors import InputError


class ServiceError(Exception):
    """The service answered without images, or not at all.

    Attributes:
        status: of HTTP; 0 where there was no answer.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True)
class Progress:
    """How far a request has come.

    Attributes:
        steps_done, steps: of all its samples together.
        previews: what the network predicts some of the samples to become, uint8 [H, W, C] by their places 0..num−1.
        images: uint8 [num, H, W, C], in the last one; None before.
    """

    steps_done: int
    steps: int
    previews: dict[int, np.ndarray]
    images: np.ndarray | None = None


class Client:
    """Images from a service that runs: `Client().sample(4, seed=0, steps=50)`.

    Args:
        url: of the service.
        token: that it wants; None where it wants none.
        timeout_s: without any sign of life; a request of one answer has none until it is done.
        patience_s: how long to come back to a service that has too much to do.

    Raises:
        InputError: no URL of HTTP.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        timeout_s: float = 600.0,
        patience_s: float = 60.0,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"url is {url!r}, expected one such as http://127.0.0.1:8000")
        self._url, self._token, self._timeout_s, self._patience_s = url.rstrip("/"), token, timeout_s, patience_s
        # No proxy reaches this machine under its own name.
        proxies: dict[str, str] | None = {} if _is_loopback(parts.hostname) else None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))

    def model(self) -> dict[str, Any]:
        """What the network is, and what may be asked of it. Raises ServiceError."""
        with self._open("/v1/model", "application/json") as answer:
            return dict(json.load(answer))

    def sample(self, num: int = 1, seed: int = 0, start: int = 0, **fields: Any) -> np.ndarray:
        """Draw images, as `runtime.Sampler.sample` does.

        Args:
            num, seed, start: how many, of which seed, from which index on.
            fields: others of `POST /v1/images`: `sampler`, `steps`, `spacing`, `classes`, `deadline_s`, ….

        Returns:
            uint8 [num, H, W, C].

        Raises:
            ServiceError: a request that was refused or not finished.
        """
        body = {"num": num, "seed": seed, "start": start, **fields}
        with self._open("/v1/images", "application/x-npz", body) as answer, _lost_in(answer):
            content = io.BytesIO(answer.read())
        with np.load(content, allow_pickle=False) as arrays:
            return np.asarray(arrays["arr_0"])

    def watch(
        self, num: int = 1, seed: int = 0, start: int = 0, preview_every: int = 1, **fields: Any
    ) -> Iterator[Progress]:
        """As `sample`, step by step; the last `Progress` has the images. To stop iterating cancels the request.

        Args:
            num, seed, start, fields: as in `sample`.
            preview_every: steps between two previews of a sample.

        Raises:
            ServiceError: a request that was refused or not finished.
        """
        body = {"num": num, "seed": seed, "start": start, "preview_every": preview_every, **fields}
        with self._open("/v1/images", "text/event-stream", body) as answer, _lost_in(answer):
            progress = Progress(0, 0, {})
            for name, data in _events(answer):
                if name == "error":
                    raise ServiceError(data["status"], data["detail"])
                if name == "images":
                    images = np.stack([_image(text) for text in data["images"]])
                    yield Progress(progress.steps, progress.steps, {}, images)
                    return
                previews = {each["place"]: _image(each["png"]) for each in data["previews"]}
                progress = Progress(data["steps_done"], data["steps"], previews)
                yield progress
        raise ServiceError(0, f"{self._url}: the connection ended before the images were done")

    def _open(self, path: str, accept: str, body: dict[str, Any] | None = None) -> HTTPResponse:
        headers = {"Accept": accept}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self._url + path, data, headers)
        give_up_at = time.monotonic() + self._patience_s
        while True:
            try:
                answer: HTTPResponse = self._opener.open(request, timeout=self._timeout_s)
            except urllib.error.HTTPError as error:
                with error:
                    detail, retry_after = _detail(error), error.headers.get("Retry-After", "")
                wait_s = int(retry_after) if retry_after.isdecimal() else 1
                if error.code != 429 or time.monotonic() + wait_s > give_up_at:
                    raise ServiceError(error.code, detail) from None
                time.sleep(wait_s)
            except (OSError, HTTPException) as error:
                why = error.reason if isinstance(error, urllib.error.URLError) else error
                raise ServiceError(0, f"{self._url}: no answer ({why}); is `ddpm-rt serve` running there?") from None
            else:
                return answer


class _lost_in:
    """Makes a ServiceError of a connection that is lost within a `with` block."""

    def __init__(self, answer: HTTPResponse) -> None:
        self._url = answer.url

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError | HTTPException):
            raise ServiceError(0, f"{self._url}: the connection was lost ({error})") from error


def _events(answer: HTTPResponse) -> Iterator[tuple[str, Any]]:
    """(name, data) of each event of `text/event-stream`."""
    name, data = "", ""
    for raw in answer:
        line = raw.decode("utf-8").rstrip("\n")
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data = value
        elif not line and name:
            yield name, json.loads(data)
            name = ""


def _image(text: str) -> np.ndarray:
    """A PNG in base64 as uint8 [H, W, C]."""
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as image:
        array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError, OSError):  # of a proxy in between
        return f"{error.code} {error.reason}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
