"""The chain on a GPU: network call and compiled step on one stream, as few launches as the backend allows.

A chain of a batch lives on the device from x_T, which is drawn there, to x_0. The host says how many rows to run
(`enqueue`), waits (`wait`), and reads what it wants to see (`x`, `x_start`, `row`, `finite`). Rows are put on the
stream in chunks: the whole chain if it takes less than a quarter of a second, else chunks of about that, so that
progress can be shown and Ctrl-C is answered.

Its arithmetic is `kernels/step.h`, as the host's: for equal predictions it gives the bits of `HostChain`.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Sequence

import numpy as np

from diffusion.errors import InputError
from diffusion.normal import draw_number
from diffusion.step_table import StepTable
from runtime.device.chain_buffers import ChainBuffers
from runtime.device.chain_graph import GRAPH_KINDS, MEASURED, ROWS_PER_TURN, RowLauncher, make_launcher
from runtime.device.interface import DeviceCall, DeviceEngine
from runtime.formats.run_manifest import NonFiniteSample
from runtime.kernels_module import import_kernels

CHUNK_SECONDS = 0.25
"""Rows are launched for about this long at a time."""


class DeviceChain:
    """A batch of samples on its way through a table, on a GPU. The counterpart of `HostChain`.

    Each sample has its own seed, sample index and row; a sample past its last row, or with row −1, is idle: the
    network is called on it, but its state is left untouched.

    Args:
        engine: the network, bound anew to this chain's buffers with state of its own.
        table: the rows.
        batch_size: N, fixed: another batch is another chain, with a graph of its own.
        with_x_start: whether `x_start` holds the prediction of x_0 after every step.
        graph: one of `runtime.device.chain_graph.GRAPH_KINDS`, to be used if it works; `MEASURED` for the faster one.
        rows_per_turn: of a loop on the device; fewer rows than that are launched one by one.

    Attributes:
        batch_size: N.
        stream: a `cudaStream_t` of the chain's own; put nothing on it while rows are running.
        fall_backs: why it is not the one that was asked for; empty if it is.
        device_bytes: memory of the chain's own buffers.
        rows_left: how many rows the sample with the most of them has still to be put on the stream.
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
        self._kernels = import_kernels()
        self._engine, self._memory = engine, engine.memory
        self._timesteps = table.timesteps.astype(np.int32)
        self._shape = (batch_size, *engine.process.sample.chw)
        self.batch_size = batch_size
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
        self.device_bytes = self._buffers.layout.size_bytes
        self.seconds_per_row: float | None = None
        self._control_is_current = False
        self.rows_left = 0
        self._rows_enqueued = 0
        self._enqueued_at = 0.0
        self._samples = 0

    def _make_launcher(self, table: StepTable, graph: str, rows_per_turn: int) -> tuple[RowLauncher, list[str]]:
        engine, address = self._engine, self._buffers.address
        network_input = address("next_input") or address("x")
        self._call = engine.bind_device(
            network_input, address("t"), address("prediction"), self.batch_size, self.stream
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
        """The kind that is used, one of `runtime.device.chain_graph.GRAPH_KINDS`; the last one if this is closed."""
        return self._graph if self._launcher is None else self._launcher.kind

    def begin(self, seeds: Sequence[int], sample_indices: Sequence[int], x_init: np.ndarray | None = None) -> None:
        """Put a new sample into each of the first n ≤ N slots, at row 0; the other slots are idle.

        Args:
            seeds, sample_indices: n each, 0..2⁶⁴−1.
            x_init: float32 [n, C, H, W] to begin from instead of x_T ~ N(0, I) by seed and index.

        Raises:
            InputError: more samples than slots, or a state of another shape.
        """
        num = len(seeds)
        if not 0 < num <= self.batch_size:
            raise InputError(f"{num} samples were given to a chain of {self.batch_size}; expected 1 to that many")
        if x_init is not None and x_init.shape != (num, *self._shape[1:]):
            raise InputError(f"initial states have shape {x_init.shape}, expected {(num, *self._shape[1:])}")
        control, address, stream = self._buffers.control, self._buffers.address, self.stream
        self._memory.synchronize(stream)
        for values in control.values():
            values[:] = 0
        # Named, because NumPy makes float64 of a list with integers on both sides of 2⁶³.
        control["seed"][:num] = np.array(seeds, dtype=np.uint64)
        control["sample_index"][:num] = np.array(sample_indices, dtype=np.uint64)
        control["draw"][:] = draw_number(None)
        control["row"][num:] = -1
        control["t"][:] = self._timesteps[0]
        self._buffers.upload(stream)
        elements = int(np.prod(self._shape[1:]))
        for name in ("h1", "h2"):
            if address(name):
                self._memory.zero(address(name), 4 * self.batch_size * elements, stream)
        if x_init is None:
            self._kernels.cuda_normal_launch(
                out=address("x"),
                num_samples=num,
                num_elements=elements,
                seed=address("seed"),
                sample_index=address("sample_index"),
                draw=address("draw"),
                stream=stream,
            )
        else:
            self._memory.to_device(address("x"), np.ascontiguousarray(x_init, dtype=np.float32), stream)
        if address("next_input"):
            self._kernels.cuda_convert_launch(
                x=address("x"),
                out=address("next_input"),
                out_type=self._engine.io_type,
                num_elements=self.batch_size * elements,
                stream=stream,
            )
        self._control_is_current = True
        self.rows_left, self._samples = len(self._timesteps), num

    def next_chunk(self) -> int:
        """How many rows to launch at once: about `CHUNK_SECONDS` of them; one as long as nothing was measured."""
        if self.seconds_per_row is None:
            return min(1, self.rows_left)
        return min(self.rows_left, max(1, int(CHUNK_SECONDS / max(self.seconds_per_row, 1e-9)) + 1))

    def enqueue(self, num_rows: int) -> None:
        """Put so many rows on the stream, without waiting for them.

        Raises:
            RuntimeError: CUDA, or the engine, refused.
        """
        if num_rows < 1:  # a loop on the device takes one turn at least
            return
        assert self._launcher is not None, "closed"
        if not self._rows_enqueued:
            self._enqueued_at = time.perf_counter()
        self._kernels.nvtx_push(f"{num_rows} rows of {self._samples} samples")
        try:
            self._launcher.enqueue(num_rows)
        finally:
            self._kernels.nvtx_pop()
        self._rows_enqueued += num_rows
        self.rows_left = max(0, self.rows_left - num_rows)
        self._control_is_current = False

    def wait(self) -> None:
        """Wait for the rows that were put on the stream.

        Raises:
            RuntimeError: one of them failed, with CUDA's text.
        """
        self._memory.synchronize(self.stream)
        if self._rows_enqueued:
            self.seconds_per_row = (time.perf_counter() - self._enqueued_at) / self._rows_enqueued
            self._rows_enqueued = 0

    def step(self) -> None:
        """One network call and one row for every sample that has one left; done when this returns."""
        self.enqueue(1)
        self.wait()

    def run(self, after_step: Callable[[], None] | None = None) -> None:
        """Run every sample to its end; `after_step` is called for each step, once its chunk is done."""
        while self.rows_left:
            chunk = self.next_chunk()
            self.enqueue(chunk)
            self.wait()
            if after_step is not None:
                for _ in range(chunk):
                    after_step()

    @property
    def x(self) -> np.ndarray:
        """The states, a copy: float32 [N, C, H, W]."""
        return self._read("x")

    @property
    def x_start(self) -> np.ndarray | None:
        """What the last step predicted x_0 to be, a copy: float32 [N, C, H, W]; None if it is not kept."""
        return self._read("x_start") if self._buffers.address("x_start") else None

    @property
    def row(self) -> np.ndarray:
        """The row that each sample runs next, a copy: int32 [N]. May be set: −1 makes a sample idle."""
        return self._current_control()["row"].copy()

    @row.setter
    def row(self, rows: np.ndarray) -> None:
        control = self._current_control()
        control["row"][:] = rows
        named = np.flatnonzero((control["row"] >= 0) & (control["row"] < len(self._timesteps)))
        control["t"][named] = self._timesteps[control["row"][named]]
        self._buffers.upload(self.stream)
        left = len(self._timesteps) - control["row"][named]
        self.rows_left = int(left.max(initial=0))

    def non_finite(self) -> list[NonFiniteSample]:
        """The samples that broke, in the order of their slots."""
        control = self._current_control()
        slots = np.flatnonzero(control["flag"])
        rows = control["flag"][slots] - 1
        return [
            NonFiniteSample(int(control["sample_index"][slot]), int(row), int(self._timesteps[row]))
            for slot, row in zip(slots, rows, strict=True)
        ]

    def finite(self) -> np.ndarray:
        """bool [N]: which samples may be used."""
        return np.asarray(self._current_control()["flag"] == 0)

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

    def _current_control(self) -> dict[str, np.ndarray]:
        if not self._control_is_current:
            self._buffers.download(self.stream)
            self._control_is_current = True
        return self._buffers.control
