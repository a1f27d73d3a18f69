"""From the thread of the slots to the event loop: wait for a ticket, follow it, and let go of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from runtime.serve.bodies import preview_fields
from runtime.serve.ticket import FINAL, Preview, Ticket

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# A comment is sent where nothing else is, so that proxies do not take the connection for dead.
_KEEP_ALIVE_S = 10.0


class Signal:
    """An `on_change` that wakes a coroutine of the loop that it was made in."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def __call__(self) -> None:
        """Called by the thread of the slots."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._event.set)

    def wake(self) -> None:
        """As if something had changed; called by the loop."""
        self._event.set()

    async def changed(self, timeout_s: float | None = None) -> bool:
        """Wait for the next change; whether there was one."""
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except TimeoutError:
            return False
        self._event.clear()
        return True


async def until_ended(ticket: Ticket, signal: Signal, receive: Receive) -> bool:
    """Wait for the end of a request; False where the client went away first.

    Args:
        ticket: of the request.
        signal: its `on_change`.
        receive: of ASGI, with the body of the request read.
    """
    leaving = asyncio.create_task(_until_disconnected(receive, signal))
    try:
        while ticket.state not in FINAL:
            await signal.changed()
            if leaving.done():
                leaving.result()  # a bug is told
                return False
        return True
    finally:
        leaving.cancel()


async def _until_disconnected(receive: Receive, signal: Signal) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        signal.wake()


async def progress_events(ticket: Ticket, signal: Signal) -> AsyncIterator[bytes]:
    """Events of `text/event-stream` until the end of a request: what is done, and new previews.

    A client that reads slowly gets fewer of them: only the last state is kept.
    """
    loop = asyncio.get_running_loop()
    told: tuple[object, ...] = ()
    preview: Preview | None = None
    sent_at = loop.time()
    while True:
        ended = ticket.state in FINAL
        state = (ticket.state, ticket.rows_done)
        newest = ticket.preview
        if state != told or newest is not preview:
            fields = {
                "state": ticket.state.value,
                "steps_done": ticket.rows_done,
                "steps": ticket.rows,
                "images_done": ticket.finished,
                "previews": preview_fields(newest) if newest is not None and newest is not preview else [],
            }
            # Without previews, ten events a second are enough.
            if fields["previews"] or not told or ended or loop.time() - sent_at >= 0.1:
                told, preview, sent_at = state, newest, loop.time()
                yield event("progress", fields)
        if ended:
            return
        if not await signal.changed(_KEEP_ALIVE_S):
            sent_at = loop.time()
            yield b": nothing new\n\n"


def event(name: str, fields: dict[str, Any]) -> bytes:
    """One event of `text/event-stream`."""
    return f"event: {name}\ndata: {json.dumps(fields)}\n\n".encode()
