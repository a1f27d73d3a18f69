"""The endpoints: what is asked over HTTP, and how it is answered."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi_offline import FastAPIOffline

from diffusion.errors import InputError
from diffusion.spacing import SPACINGS
from runtime.engines.interface import Engine
from runtime.images import DRAWABLE_CHANNELS
from runtime.serve.bodies import ImagesAnswer, ImagesBody, Problem, first_problem, images_answer, images_npz, images_png
from runtime.serve.guard import DOCS_FILES, Guard
from runtime.serve.metrics import CONTENT_TYPE, Metrics
from runtime.serve.ticket import State, Ticket
from runtime.serve.watching import Signal, event, progress_events, until_ended
from runtime.serve.worker import BusyError, StoppingError, Worker

JSON, PNG, NPZ, EVENTS = "application/json", "image/png", "application/x-npz", "text/event-stream"
FORMATS = (JSON, PNG, NPZ, EVENTS)
MAX_BODY = 4 << 20
"""Bytes of a request's body: a few small images to enlarge, as JSON."""

_PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {
    "": ("index.html", "text/html"),
    "page.js": ("page.js", "text/javascript"),
    "page.css": ("page.css", "text/css"),
}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": text}
    for code, text in {
        400: "a body that is no text",
        401: "no token, or another one",
        406: "a format that there is not",
        413: "a body that is too large",
        421: "a name that is not this machine's, where there is no token",
        422: "a request that cannot be run",
        429: "too much waits; `Retry-After` says for how long",
        500: "the network failed, or a sample came out NaN or infinite",
        503: "the service is ending, or broken",
        504: "the deadline has passed",
    }.items()
}
# What became of a request that has no images → the status that says so.
_STATUS = {State.EXPIRED: 504, State.FAILED: 500, State.CANCELLED: 503}


class _Refusal(Exception):
    """An answer without images."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers or {}


def make_app(engine: Engine, worker: Worker, metrics: Metrics, token: str | None = None) -> FastAPI:
    """The service over HTTP.

    Args:
        engine: for what is said of it.
        worker: runs the requests; started.
        metrics: its observer.
        token: that a client must have; None where only this machine is served.
    """
    version = importlib.metadata.version("ddpm-rt")
    app = FastAPIOffline(  # its /docs need no CDN
        title="ddpm-rt",
        version=version,
        summary="Images of one network. Equal requests give equal images, bit for bit.",
        redoc_url=None,
        static_url=DOCS_FILES,
        max_body_size=MAX_BODY,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.add_middleware(Guard, token=token)
    identity = {"name": engine.name, "precision": engine.precision, "sha256": engine.sha256}

    @app.exception_handler(_Refusal)
    async def refused(_: Request, refusal: _Refusal) -> JSONResponse:
        metrics.refused(refusal.status)
        return JSONResponse({"detail": _sendable(str(refusal))}, refusal.status, refusal.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        metrics.refused(422)
        return JSONResponse({"detail": _sendable(first_problem(error.errors()))}, 422)

    @app.post(
        "/v1/images",
        response_model=None,
        responses={
            200: {
                "model": ImagesAnswer,
                "description": "the images, in the format that `Accept` asks for",
                "content": {
                    PNG: {"schema": {"type": "string", "format": "binary"}},
                    NPZ: {"schema": {"type": "string", "format": "binary"}},
                    EVENTS: {"schema": {"type": "string"}},
                },
            },
            **_PROBLEMS,
        },
    )
    async def images(body: ImagesBody, request: Request) -> Response:
        """Draw images. `Accept` chooses JSON with PNGs in it, one PNG (of several, a grid), npz, or events."""
        wanted = _format(request.headers.get("accept", JSON))
        if wanted != NPZ and engine.process.sample.channels not in DRAWABLE_CHANNELS:
            channels = engine.process.sample.channels
            raise _Refusal(406, f"samples have {channels} channels, which are no picture; ask for {NPZ}")
        signal = Signal()
        try:
            ticket = worker.submit(body.request(with_previews=wanted == EVENTS), signal, is_watched=wanted == EVENTS)
        except InputError as error:
            raise _Refusal(422, str(error)) from None
        except BusyError as error:
            raise _Refusal(429, str(error), {"Retry-After": str(error.retry_after_s)}) from None
        except StoppingError as error:
            raise _Refusal(503, str(error)) from None
        if wanted == EVENTS:
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(events(ticket, signal, body), media_type=EVENTS, headers=headers)
        try:
            if not await until_ended(ticket, signal, request.receive):
                return Response(status_code=499)  # which nobody reads
        finally:
            worker.cancel(ticket)  # nothing, if it has ended
        problem = _problem(ticket)
        if problem is not None:
            raise problem
        if wanted == JSON:
            answer = await asyncio.to_thread(images_answer, ticket, body, identity)
            return JSONResponse(answer.model_dump())
        make = images_png if wanted == PNG else images_npz
        return Response(await asyncio.to_thread(make, ticket), media_type=wanted)

    async def events(ticket: Ticket, signal: Signal, body: ImagesBody) -> AsyncIterator[bytes]:
        try:
            async for each in progress_events(ticket, signal):
                yield each
        finally:
            worker.cancel(ticket)
        problem = _problem(ticket)
        if problem is not None:
            yield event("error", {"status": problem.status, "detail": str(problem)})
        else:
            answer = await asyncio.to_thread(images_answer, ticket, body, identity)
            yield event("images", answer.model_dump())

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        """What the network is, and what may be asked of it."""
        process = engine.process
        return {
            "version": version,
            "engine": identity,
            "process": process.to_json(),
            "samplers": worker.tables.samplers,
            "tables": worker.tables.steps_of_files,
            "spacings": list(SPACINGS),
            "formats": list(FORMATS),
            "slots": worker.num_slots,
            "limits": vars(worker.limits),
        }

    @app.get("/healthz", responses={503: {"model": Problem}})
    async def healthz() -> dict[str, str]:
        """Whether the service runs what it took; where it does not, it should be started anew."""
        if not worker.is_healthy:
            raise _Refusal(503, worker.broken or "the thread of the slots has ended")
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"model": Problem}})
    async def readyz() -> dict[str, str]:
        """Whether the service takes requests."""
        if not worker.is_ready:
            raise _Refusal(503, worker.broken or "the service is ending")
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    for path, (name, kind) in _PAGE_FILES.items():
        _add_page_file(app, f"/{path}", (_PAGE / name).read_bytes(), kind)
    return app


def _add_page_file(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.get(path, include_in_schema=False)
    async def page_file() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=_PAGE_HEADERS)


def _format(accept: str) -> str:
    """The first format of an Accept header that there is. Raises _Refusal."""
    for part in accept.split(","):
        name = part.partition(";")[0].strip().lower()
        if name in FORMATS:
            return name
        if name in ("*/*", "application/*", ""):
            return JSON
        if name == "image/*":
            return PNG
    raise _Refusal(406, f"Accept is {accept}, expected one of {', '.join(FORMATS)}")


def _sendable(text: str) -> str:
    """Text that repeats what a client sent: JSON can name half of a surrogate pair, UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _problem(ticket: Ticket) -> _Refusal | None:
    """Why a request that has ended has no images; None where it has."""
    return _Refusal(_STATUS.get(ticket.state, 500), ticket.problem) if ticket.problem else None
