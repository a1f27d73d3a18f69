"""How rows are put on a stream: a loop on the device, one graph for each row, or plain launches.

    while   one graph whose WHILE node runs { network → step, a few times } while rows are left: one launch for many
    step    the same graph without the loop, launched once for each row
    none    the network's own call and the step's launch, for networks that cannot be captured

All three run the same kernels in the same order, so they give the same bits.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any, Protocol

from commands.errors import reason
from runtime.device.interface import DeviceCall

GRAPH_KINDS = ("while", "step", "none")
"""From the fewest launches to the most."""

# What the body of a conditional node may hold, by the CUDA runtime's documentation of cudaConditionalNodeParams.
BODY_NODE_TYPES = frozenset({"kernel", "memcpy", "memset", "empty", "child graph", "conditional"})

ROWS_PER_TURN = 4
"""Rows in one turn of a loop: the time that a device takes to decide on another turn is shared by so many."""

_log = logging.getLogger(__name__)


class RowLauncher(Protocol):
    """Puts rows on a stream."""

    kind: str
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
        self._rest: StepLauncher | None = None
        if num_rows > 1:
            try:
                self._rest = StepLauncher(kernels, network, step, stream)
            except RuntimeError:
                self._loop.close()
                raise

    def enqueue(self, num_rows: int) -> None:
        """As `RowLauncher.enqueue`."""
        turns, rest = divmod(num_rows, self._num_rows)
        if turns:
            self._kernels.cuda_set_uint32(self._turns_left, turns, self._stream)
            self._loop.launch()
        if self._rest is not None:
            self._rest.enqueue(rest)

    def close(self) -> None:
        """Destroy the graphs."""
        self._loop.close()
        if self._rest is not None:
            self._rest.close()


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
        wanted: one of `GRAPH_KINDS`.
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
    if network is not None and wanted == "while":
        types = kernels.cuda_graph_node_types(network)
        odd = sorted(f"{types[name]} × {name}" for name in types if name not in BODY_NODE_TYPES)
        if odd:
            reasons.append(f"no loop on the device: the network's graph holds {', '.join(odd)}")
        else:
            try:
                return WhileLauncher(kernels, network, step, stream, turns_left, rows_per_turn), reasons
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
