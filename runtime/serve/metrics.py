"""What Prometheus reads of the service, and the line that the log has for each request."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from runtime.serve.ticket import State, Ticket

if TYPE_CHECKING:
    from runtime.serve.worker import Worker

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Seconds: of a row, from a small network on a GPU to a large one on a CPU; and of a request.
_ROW_BUCKETS = tuple(base * 10.0**power for power in range(-5, 1) for base in (1, 2, 5))
_REQUEST_BUCKETS = tuple(base * 10.0**power for power in range(-2, 3) for base in (1, 2.5, 5))

_log = logging.getLogger("runtime.serve")


class Metrics:
    """An `Observer` of the worker, with a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self._requests = Counter(
            "ddpm_rt_requests", "Requests that have ended, by what became of them.", ["state"], registry=own
        )
        self._refused = Counter("ddpm_rt_requests_refused", "Requests that were not taken.", ["status"], registry=own)
        self._images = Counter("ddpm_rt_images", "Samples of requests that were done.", registry=own)
        self._broken = Counter("ddpm_rt_non_finite_samples", "Samples that came out NaN or infinite.", registry=own)
        self._rows = Counter("ddpm_rt_network_calls", "Calls of the network.", registry=own)
        self._sample_rows = Counter("ddpm_rt_sample_steps", "Steps of all samples together.", registry=own)
        self._row_seconds = Histogram(
            "ddpm_rt_step_seconds", "Network call and step, of the whole batch.", buckets=_ROW_BUCKETS, registry=own
        )
        self._queue_seconds = _request_histogram("queue", "From when a request came to its first slot.", own)
        self._preview_seconds = _request_histogram("first_preview", "From the first slot to the first preview.", own)
        self._request_seconds = _request_histogram("request", "From when a request came to its end.", own)

        for state in State:
            if state not in (State.WAITING, State.RUNNING):
                self._requests.labels(state.value)  # zeros, which a rate can be taken of

    def watch(self, worker: Worker) -> None:
        """Read the queue and the slots of a worker when somebody asks."""
        gauges = (
            ("ddpm_rt_queue_samples", "Samples that wait for a slot.", lambda: worker.waiting),
            ("ddpm_rt_slots_in_use", "Slots with a sample in them.", lambda: worker.occupied),
            ("ddpm_rt_slots", "Slots.", lambda: worker.num_slots),
            ("ddpm_rt_ready", "Whether requests are taken.", lambda: float(worker.is_ready)),
        )
        for name, text, value in gauges:
            Gauge(name, text, registry=self.registry).set_function(value)

    def stepped(self, rows: int, seconds: float, occupied: int) -> None:
        """As `Observer.stepped`."""
        self._rows.inc(rows)
        self._sample_rows.inc(rows * occupied)
        self._row_seconds.observe(seconds / rows)

    def ended(self, ticket: Ticket) -> None:
        """As `Observer.ended`."""
        self._requests.labels(ticket.state.value).inc()
        self._broken.inc(len(ticket.non_finite))
        if ticket.state is State.DONE:
            self._images.inc(ticket.request.num - len(ticket.non_finite))
        assert ticket.ended_at is not None
        self._request_seconds.observe(ticket.ended_at - ticket.taken_at)
        if ticket.started_at is not None:
            self._queue_seconds.observe(ticket.started_at - ticket.taken_at)
            if ticket.first_preview_at is not None:
                self._preview_seconds.observe(ticket.first_preview_at - ticket.started_at)
        request = ticket.request
        _log.info(
            "request %s",
            ticket.state.value,
            extra={
                "number": ticket.number,
                "num": request.num,
                "seed": request.seed,
                "start": request.start,
                "sampler": request.sampler,
                "steps": len(ticket.table),
                "seconds": round(ticket.ended_at - ticket.taken_at, 6),
                "rows_done": ticket.rows_done,
                "non_finite": len(ticket.non_finite),
                **({"error": ticket.error} if ticket.error else {}),
            },
        )

    def refused(self, status: int) -> None:
        """A request was not taken."""
        self._refused.labels(str(status)).inc()

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)


def _request_histogram(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"ddpm_rt_{name}_seconds", text, buckets=_REQUEST_BUCKETS, registry=registry)
