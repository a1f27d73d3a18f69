"""How rows are put on a stream: a loop on the device, one graph for each row, or plain launches.

    while   one graph whose WHILE node runs { network → step, a few times } while rows are left: one launch for many
    step    the same graph without the loop, launched once for each row
    none    the network's own call and the step's launch, for networks that cannot be captured

All three run the same kernels in the same order, so they give the same bits. Unless one is asked for, the first two are
timed on the first rows of a chain, and the faster one runs the rest: a loop is one launch, but turning it costs time on
the device, and gains nothing where the host keeps ahead.
"""

from __future__ import annotations

import itertools
import logging
from types import ModuleType
from typing import Any, Protocol

from commands.errors import reason
from runtime.device.interface import DeviceCall

GRAPH_KINDS = ("while", "step", "none")
"""From the fewest launches to the most."""

MEASURED = "measured"
"""In place of a kind: a loop or one graph a row, whichever is faster here."""

# What the body of a conditional node may hold, by the CUDA runtime's documentation of cudaConditionalNodeParams.
BODY_NODE_TYPES = frozenset({"kernel", "memcpy", "memset", "empty", "child graph", "conditional"})

ROWS_PER_TURN = 4
"""Rows in one turn of a loop: the time that a device takes to decide on another turn is shared by so many."""

_PARTS = 4
"""Loop and single rows by turns, twice."""
_CLEARLY_FASTER = 0.99
"""Else the loop stays, which leaves the host free."""

_log = logging.getLogger(__name__)


class RowLauncher(Protocol):
    """Puts rows on a stream."""

    @property
    def kind(self) -> str:
        """One of `GRAPH_KINDS`."""

    def enqueue(self, num_rows: int) -> None:
        """Put so many rows on the stream, without waiting. Raises RuntimeError with CUDA's text."""

    def close(self) -> None:
        """Give back what it holds; nothing of it may be running."""


class PlainLauncher:
    """The network's own call, then the step's launch."""

    kind = "none"

    def __init__(self, call: DeviceCall, step: Any, stream: int) -> None:
        self._call, self._step, self._stream = call, step, stream

    def enqueue(self, num_rows: int) -> None:
        """As `RowLauncher.enqueue`."""
        for _ in range(num_rows):
            self._call.enqueue(self._stream)
            self._step.launch(self._stream)

    def close(self) -> None:
        """Nothing is held."""


class StepLauncher:
    """A graph of one row, launched once for each.

    Args:
        kernels: the compiled module.
        network: a `cudaGraph_t` of one call; it is copied into the graph, its buffers and kernels are not.
        step: a `CudaStep`.
        stream: to launch on.

    Raises:
        RuntimeError: CUDA does not take the network's graph as part of this one.
    """

    kind = "step"

    def __init__(self, kernels: ModuleType, network: int, step: Any, stream: int) -> None:
        self._graph = _Executable(kernels, kernels.cuda_step_graph(network, step), stream)

    def enqueue(self, num_rows: int) -> None:
        """As `RowLauncher.enqueue`."""
        for _ in range(num_rows):
            self._graph.launch()

    def close(self) -> None:
        """Destroy the graph."""
        self._graph.close()


class WhileLauncher:
    """A graph that loops on the device, `num_rows` rows a turn, and one for the rows that are left over.

    Args:
        kernels, network, step, stream: as `StepLauncher`.
        turns_left: address of the uint32 that the loop counts down.
        num_rows: rows of one turn.

    Raises:
        RuntimeError: CUDA, or this driver, does not take the network's graph in a loop.
    """

    kind = "while"

    def __init__(
        self, kernels: ModuleType, network: int, step: Any, stream: int, turns_left: int, num_rows: int
    ) -> None:
        self._kernels, self._stream, self._turns_left, self._num_rows = kernels, stream, turns_left, num_rows
        self._loop = _Executable(kernels, kernels.cuda_while_graph(network, step, turns_left, num_rows), stream)
        try:
            self.single = StepLauncher(kernels, network, step, stream)
        except RuntimeError:
            self._loop.close()
            raise

    def enqueue(self, num_rows: int) -> None:
        """As `RowLauncher.enqueue`."""
        turns, rest = divmod(num_rows, self._num_rows)
        if turns:
            self._kernels.cuda_set_uint32(self._turns_left, turns, self._stream)
            self._loop.launch()
        self.single.enqueue(rest)

    def close(self) -> None:
        """Destroy the graphs."""
        self._loop.close()
        self.single.close()


class MeasuredLauncher:
    """A loop, until a graph for each row has been seen to be faster.

    The first chunk that is long enough runs in parts: one turn of the loop, so that the host is ahead of the device,
    then the loop and single rows twice, each part between two events. They are read when the next chunk is launched.

    Args:
        kernels: the compiled module.
        loop: with the graph for single rows; closed with this object.
        stream: of both.
        rows_per_turn: of the loop.
    """

    def __init__(self, kernels: ModuleType, loop: WhileLauncher, stream: int, rows_per_turn: int) -> None:
        self._kernels, self._loop, self._stream, self._turn = kernels, loop, stream, rows_per_turn
        self._faster: RowLauncher | None = None
        self._events: list[int] = []

    @property
    def kind(self) -> str:
        """As `RowLauncher.kind`: the one that is used from now on."""
        return (self._decided() or self._loop).kind

    def enqueue(self, num_rows: int) -> None:
        """As `RowLauncher.enqueue`."""
        launcher = self._decided()
        if launcher is not None or self._events or num_rows < (_PARTS + 1) * self._turn:
            (launcher or self._loop).enqueue(num_rows)
            return
        part = (num_rows - self._turn) // _PARTS // self._turn * self._turn
        self._loop.enqueue(self._turn)
        self._record()
        for number in range(_PARTS):
            (self._loop.single if number % 2 else self._loop).enqueue(part)
            self._record()
        self._loop.enqueue(num_rows - self._turn - _PARTS * part)

    def close(self) -> None:
        """Destroy the graphs and the events."""
        self._loop.close()
        self._forget_events()

    def _record(self) -> None:
        self._events.append(self._kernels.cuda_event_create())
        self._kernels.cuda_event_record(self._events[-1], self._stream)

    def _decided(self) -> RowLauncher | None:
        if self._faster is None and self._events:
            try:
                times = [self._kernels.cuda_event_elapsed_ms(*pair) for pair in itertools.pairwise(self._events)]
            except RuntimeError:  # the chunk is still running
                return None
            self._forget_events()
            loop, single = min(times[0::2]), min(times[1::2])
            self._faster = self._loop.single if single < _CLEARLY_FASTER * loop else self._loop
        return self._faster

    def _forget_events(self) -> None:
        while self._events:
            self._kernels.cuda_event_destroy(self._events.pop())


class _Executable:
    """A graph made ready to launch. The graph that it was made from lives as long: a loop's condition is its."""

    def __init__(self, kernels: ModuleType, graph: int, stream: int) -> None:
        self._kernels, self._graph, self._stream = kernels, graph, stream
        self._executable = 0
        try:
            self._executable = kernels.cuda_graph_instantiate(graph)
            kernels.cuda_graph_upload(self._executable, stream)
        except RuntimeError:
            self.close()
            raise

    def launch(self) -> None:
        self._kernels.cuda_graph_launch(self._executable, self._stream)

    def close(self) -> None:
        if self._executable:
            self._kernels.cuda_graph_executable_destroy(self._executable)
            self._executable = 0
        if self._graph:
            self._kernels.cuda_graph_destroy(self._graph)
            self._graph = 0


def make_launcher(
    kernels: ModuleType, call: DeviceCall, step: Any, stream: int, turns_left: int, wanted: str, rows_per_turn: int
) -> tuple[RowLauncher, list[str]]:
    """The launcher that is wanted, or the next one that works, and why it is not the one that was wanted.

    Every step down is logged as a warning: it changes nothing but the speed.

    Args:
        kernels: the compiled module.
        call: the network's, on the chain's buffers.
        step: a `CudaStep` on the same buffers.
        stream: with nothing on it.
        turns_left: address of a uint32.
        wanted: one of `GRAPH_KINDS`, or `MEASURED`.
        rows_per_turn: of a loop on the device.
    """
    reasons: list[str] = []
    network = None
    if wanted != "none":
        try:
            network = call.graph(stream)
        except RuntimeError as error:
            reasons.append(f"no graph: the network's call was not captured ({reason(error)}); launched one by one")
        else:
            if network is None:
                reasons.append("no graph: this backend's call cannot be captured; launched one by one")
    if network is not None and wanted in ("while", MEASURED):
        types = kernels.cuda_graph_node_types(network)
        odd = sorted(f"{types[name]} × {name}" for name in types if name not in BODY_NODE_TYPES)
        if odd:
            reasons.append(f"no loop on the device: the network's graph holds {', '.join(odd)}")
        else:
            try:
                loop = WhileLauncher(kernels, network, step, stream, turns_left, rows_per_turn)
                return (MeasuredLauncher(kernels, loop, stream, rows_per_turn) if wanted == MEASURED else loop), reasons
            except RuntimeError as error:
                reasons.append(f"no loop on the device: {reason(error)}")
        reasons[-1] += "; one graph launch for each row"
        _log.warning(reasons[-1])
    if network is not None:
        try:
            return StepLauncher(kernels, network, step, stream), reasons
        except RuntimeError as error:
            reasons.append(f"no graph: {reason(error)}; launched one by one")
    if reasons:
        _log.warning(reasons[-1])
    return PlainLauncher(call, step, stream), reasons
