"""Who gets the next free slot: first come, first served, but every request that waits gets its share."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.serve.ticket import Ticket


class FairShare:
    """The order in which requests get slots, one sample at a time: self-clocked fair queueing (Golestani 1994).

    The k-th sample of a request has the number `share + k`, where `share` is what stood at the counter when the request
    came; the sample with the smallest number gets the slot, of equal ones that of the request that came first, and the
    counter moves on to it. So requests of one sample are served as they come, a request of a thousand samples gives way
    to those that come after it for every other slot, and none waits longer than its own samples and those of the
    others that wait, in equal parts.
    """

    def __init__(self) -> None:
        self._counter = 0
        self._arrivals = 0
        self._waiting: list[Ticket] = []

    def add(self, ticket: Ticket) -> None:
        """A request that came."""
        ticket.number, self._arrivals = self._arrivals, self._arrivals + 1
        ticket.share = self._counter
        self._waiting.append(ticket)

    def remove(self, ticket: Ticket) -> None:
        """A request that shall get no more slots."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)

    def put_back(self, ticket: Ticket) -> None:
        """One that was removed; it keeps its place."""
        self._waiting.append(ticket)

    def next(self) -> Ticket | None:
        """The request whose sample is to get the next slot; None where none waits."""
        return min(self._waiting, key=lambda ticket: (ticket.share + ticket.granted + 1, ticket.number), default=None)

    def grant(self, ticket: Ticket) -> int:
        """Give it a slot; returns the place of the sample in its request."""
        place = ticket.granted
        ticket.granted += 1
        self._counter = max(self._counter, ticket.share + ticket.granted)
        if ticket.granted == ticket.request.num:
            self._waiting.remove(ticket)
        return place

    def __len__(self) -> int:
        """Requests with samples that wait for a slot."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._waiting)

    def samples(self) -> int:
        """Samples that wait for a slot."""
        return sum(ticket.request.num - ticket.granted for ticket in self._waiting)
