"""The chain on a GPU: network call and compiled step on one stream, as few launches as the backend allows.

A chain of a batch lives on the device from x_T, which is drawn there, to x_0. Rows are put on the stream in chunks: the
whole chain if it takes less than a quarter of a second, else chunks of about that, so that progress can be shown and
Ctrl-C is answered.

Its arithmetic is `kernels/step.h`, as the host's: for equal predictions it gives the bits of `HostChain`.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterator, Sequence

import numpy as np

from diffusion.errors import InputError
from diffusion.normal import draw_number
from diffusion.step_table import StepTable
from runtime.chain.device_buffers import ChainBuffers, condition_name
from runtime.chain.interface import Chain
from runtime.chain.launchers import GRAPH_KINDS, MEASURED, ROWS_PER_TURN, RowLauncher, make_launcher
from runtime.device.interface import DeviceCall, DeviceEngine
from runtime.kernels_module import import_kernels

CHUNK_SECONDS = 0.25
"""Rows are launched for about this long at a time."""


class DeviceChain(Chain):
    """A `Chain` on a GPU.

    Args:
        engine: the network, bound anew to this chain's buffers with state of its own.
        table: the rows.
        batch_size: N; another batch is another chain, with a graph of its own.
        with_x_start: whether `x_start` holds the prediction of x_0 after every step.
        graph: one of `runtime.chain.launchers.GRAPH_KINDS`, to be used if it works; `MEASURED` for the faster one.
        rows_per_turn: of a loop on the device; fewer rows than that are launched one by one.

    Attributes:
        stream: a `cudaStream_t` of the chain's own; put nothing on it while rows are running.
        fall_backs: why it is not the one that was asked for; empty if it is.
        seconds_per_row: measured in the last chunk, waiting included; None before the first.

    Raises:
        InputError: a batch that the engine does not take, or too little device memory.
        RuntimeError: CUDA failed.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        table: StepTable,
        batch_size: int,
        with_x_start: bool = False,
        *,
        graph: str = MEASURED,
        rows_per_turn: int = ROWS_PER_TURN,
    ) -> None:
        if graph not in (MEASURED, *GRAPH_KINDS):
            raise InputError(f"graph is {graph!r}, expected one of {', '.join(GRAPH_KINDS)}")
        super().__init__(engine, table, batch_size)
        self._kernels = import_kernels()
        self._engine, self._memory = engine, engine.memory
        self._call: DeviceCall | None = None
        self._launcher: RowLauncher | None = None
        with contextlib.ExitStack() as undo:
            self.stream = self._memory.make_stream()
            undo.callback(self._memory.free_stream, self.stream)
            self._buffers = ChainBuffers(engine, table, batch_size, with_x_start, self.stream)
            undo.callback(self._buffers.free)
            self._launcher, self.fall_backs = self._make_launcher(table, graph, rows_per_turn)
            undo.callback(self._launcher.close)
            undo.callback(self._memory.synchronize, self.stream)
            # A chain that is dropped gives back what a closed one does, from the last to the first. At the end of the
            # process the driver frees everything, in an order of its own.
            self._give_back = weakref.finalize(self, undo.pop_all().close)
            self._give_back.atexit = False
        self._graph = self._launcher.kind
        self.seconds_per_row: float | None = None
        self._control_is_current = False
        self._rows_enqueued = 0
        self._enqueued_at = 0.0

    def _make_launcher(self, table: StepTable, graph: str, rows_per_turn: int) -> tuple[RowLauncher, list[str]]:
        engine, address = self._engine, self._buffers.address
        network_input = address("next_input") or address("x")
        given = [address(condition_name(place)) for place in range(len(self._conditions))]
        self._call = engine.bind_device(
            network_input, address("t"), address("prediction"), self.batch_size, self.stream, *given
        )
        names = "coefficients timesteps x prediction t row seed sample_index flag arrivals h1 h2 x_start next_input"
        shape = engine.process.sample
        step = self._kernels.CudaStep(
            **{name: address(name) for name in names.split()},
            num_rows=len(table),
            histories=table.histories,
            learned=table.learned,
            h2_is_x_start=table.h2_is_x_start,
            clip=table.clip,
            num_samples=self.batch_size,
            num_elements=shape.num_elements,
            prediction_elements=engine.process.prediction_channels * shape.height * shape.width,
            prediction_type=engine.io_type,
            t_is_int64=engine.t_type == "int64",
        )
        turns_left = address("turns_left")
        return make_launcher(self._kernels, self._call, step, self.stream, turns_left, graph, rows_per_turn)

    @property
    def graph(self) -> str:
        """The kind that is used, one of `runtime.chain.launchers.GRAPH_KINDS`; the last one if this is closed."""
        return self._graph if self._launcher is None else self._launcher.kind

    def next_chunk(self) -> int:
        """About `CHUNK_SECONDS` of rows; one as long as nothing was measured."""
        if self.seconds_per_row is None:
            return min(1, self.rows_left)
        return min(self.rows_left, max(1, int(CHUNK_SECONDS / max(self.seconds_per_row, 1e-9)) + 1))

    def enqueue(self, num_rows: int) -> None:
        """Put so many rows on the stream, without waiting for them. Raises RuntimeError as `Chain.enqueue`."""
        if num_rows < 1:  # a loop on the device takes one turn at least
            return
        assert self._launcher is not None, "closed"
        if not self._rows_enqueued:
            self._enqueued_at = time.perf_counter()
        self._kernels.nvtx_push(f"{num_rows} rows of {self.batch_size} samples")
        try:
            self._launcher.enqueue(num_rows)
        finally:
            self._kernels.nvtx_pop()
        self._rows_enqueued += num_rows
        self.rows_left = max(0, self.rows_left - num_rows)
        self._control_is_current = False

    def wait(self) -> None:
        """As `Chain.wait`."""
        self._memory.synchronize(self.stream)
        if self._rows_enqueued:
            self.seconds_per_row = (time.perf_counter() - self._enqueued_at) / self._rows_enqueued
            self._rows_enqueued = 0

    @property
    def x(self) -> np.ndarray:
        """The states, a copy: float32 [N, C, H, W]."""
        return self._read("x")

    @property
    def x_start(self) -> np.ndarray | None:
        """What the last row predicted x_0 to be, a copy: float32 [N, C, H, W]; None if it is not kept."""
        return self._read("x_start") if self._buffers.address("x_start") else None

    @property
    def buffer_bytes(self) -> int:
        """Device memory of the chain's own buffers."""
        return self._buffers.layout.size_bytes

    def address(self, name: str) -> int:
        """Where a buffer lies on the device, by `ChainLayout`'s names; 0 if there is none. For measurements."""
        return self._buffers.address(name)

    @property
    def call(self) -> DeviceCall:
        """The network's call on this chain's buffers. For measurements."""
        assert self._call is not None, "closed"
        return self._call

    def close(self) -> None:
        """Wait for what is running, and give the graph and the buffers back."""
        if self._launcher is None:
            return
        self._graph = self.graph
        self._give_back()
        self._launcher = self._call = None

    def _read(self, name: str) -> np.ndarray:
        states = np.empty(self._shape, dtype=np.float32)
        self._memory.to_host(states, self._buffers.address(name), self.stream)
        return states

    def _control(self, current: bool = True) -> dict[str, np.ndarray]:
        if current and not self._control_is_current:
            self._buffers.download(self.stream)
        elif not current:
            self._memory.synchronize(self.stream)  # which may still be writing it
        self._control_is_current = True
        return self._buffers.control

    def _upload(self) -> None:
        self._buffers.control["draw"][:] = draw_number(None)
        self._buffers.upload(self.stream)

    def _write_rows(self, first: int, coefficients: np.ndarray) -> None:
        self._buffers.write_rows(first, coefficients, self._timesteps, self.stream)

    def _fill(self, slots: np.ndarray, x_init: np.ndarray | None, *, others_idle: bool) -> None:
        address, stream = self._buffers.address, self.stream
        elements = int(np.prod(self._shape[1:]))
        runs = list(_runs(slots))
        for place, first, num in runs:
            x = address("x") + 4 * first * elements
            if x_init is not None:
                self._memory.to_device(x, np.ascontiguousarray(x_init[place : place + num], np.float32), stream)
                continue
            self._kernels.cuda_normal_launch(
                out=x,
                num_samples=num,
                num_elements=elements,
                seed=address("seed") + 8 * first,
                sample_index=address("sample_index") + 8 * first,
                draw=address("draw") + 4 * first,
                stream=stream,
            )
        for _, first, num in [(0, 0, self.batch_size)] if others_idle else runs:
            for name in ("h1", "h2"):
                if address(name):
                    self._memory.zero(address(name) + 4 * first * elements, 4 * num * elements, stream)
        if address("next_input"):
            # Of every slot: where a sample goes on, its state rounds to what the step has written there.
            self._kernels.cuda_convert_launch(
                x=address("x"),
                out=address("next_input"),
                out_type=self._engine.io_type,
                num_elements=self.batch_size * elements,
                stream=stream,
            )

    def _condition(self, slots: np.ndarray, conditions: Sequence[np.ndarray], *, others_idle: bool) -> None:
        for number, (of, values) in enumerate(zip(self._conditions, conditions, strict=True)):
            address, item = self._buffers.address(condition_name(number)), values.itemsize * of.num_elements
            if others_idle:
                self._memory.zero(address, self.batch_size * item, self.stream)
            for place, first, num in _runs(slots):
                part = np.ascontiguousarray(values[place : place + num])
                self._memory.to_device(address + first * item, part, self.stream)


def _runs(slots: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Consecutive slots together: the place in `slots` of the first, its slot, and how many."""
    cuts = np.flatnonzero(np.diff(slots) != 1) + 1
    for run in np.split(np.arange(len(slots)), cuts):
        yield int(run[0]), int(slots[run[0]]), len(run)
