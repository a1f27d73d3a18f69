"""A device on the host: its memory is NumPy's, its streams are lists of work, its step is the compiled C++ one.

What is put on a stream runs when someone waits for it, not before: all streams then take turns, one piece of work
each, so that a chain that did not keep to its own buffers would be seen. Whatever is destroyed cannot be used again.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable

import numpy as np

from diffusion.errors import InputError
from runtime.kernels_module import import_kernels

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int64": np.int64}

Work = Callable[[], None]


def array_at(address: int, shape: tuple[int, ...], kind: type) -> np.ndarray:
    """The device's memory as an array."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype=kind).reshape(shape)


def rounded(x: np.ndarray, io_type: str) -> np.ndarray:
    """float32 in another type, as the step rounds; bfloat16 as uint16."""
    if io_type != "bfloat16":
        return x.astype(TYPES[io_type])
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def as_float32(x: np.ndarray, io_type: str) -> np.ndarray:
    """The other way."""
    return (x.astype(np.uint32) << 16).view(np.float32) if io_type == "bfloat16" else x.astype(np.float32)


class HostStreams:
    """Streams of every user of this device."""

    def __init__(self) -> None:
        self.work: dict[int, list[Work]] = {}
        self.recording: dict[int, list[Work]] = {}
        self.most_at_once = 0  # streams with work on them when someone waited
        self._handles = itertools.count(0x5000)

    def make(self) -> int:
        handle = next(self._handles)
        self.work[handle] = []
        return handle

    def put(self, stream: int, work: Work) -> None:
        if stream in self.recording:
            self.recording[stream].append(work)
        else:
            self.work[stream].append(work)

    def wait(self, stream: int) -> None:
        assert stream not in self.recording, "a stream that is being captured was waited for"
        self.most_at_once = max(self.most_at_once, sum(bool(pending) for pending in self.work.values()))
        while self.work[stream]:
            for pending in self.work.values():
                if pending:
                    pending.pop(0)()


class HostDeviceMemory:
    """A `DeviceMemory`."""

    name = "host"

    def __init__(self, size_bytes: int = 1 << 24) -> None:
        self.streams = HostStreams()
        self.size_bytes = size_bytes
        self.arrays: dict[int, np.ndarray] = {}

    def allocate(self, size_bytes: int) -> int:
        if size_bytes > self.free_bytes():
            raise InputError(f"device memory: {size_bytes} are needed and {self.free_bytes()} are free")
        room = np.full(size_bytes + 256, 0xA5, np.uint8)  # junk, as on a GPU
        address = -(-room.ctypes.data // 256) * 256
        self.arrays[address] = room
        return address

    def free(self, address: int) -> None:
        self.arrays.pop(address)[:] = 0xA5

    def free_bytes(self) -> int:
        return self.size_bytes - sum(len(array) - 256 for array in self.arrays.values())

    def to_device(self, address: int, array: np.ndarray, stream: int) -> None:
        self.streams.wait(stream)
        assert array.flags.c_contiguous
        array_at(address, (array.nbytes,), np.uint8)[:] = array.reshape(-1).view(np.uint8)

    def to_host(self, array: np.ndarray, address: int, stream: int) -> None:
        self.streams.wait(stream)
        assert array.flags.c_contiguous
        array.reshape(-1).view(np.uint8)[:] = array_at(address, (array.nbytes,), np.uint8)

    def zero(self, address: int, size_bytes: int, stream: int) -> None:
        self.streams.put(stream, lambda: array_at(address, (size_bytes,), np.uint8).fill(0))

    def make_stream(self) -> int:
        return self.streams.make()

    def free_stream(self, stream: int) -> None:
        assert not self.streams.work.pop(stream), "a stream was given back with work on it"

    def synchronize(self, stream: int) -> None:
        self.streams.wait(stream)

    def is_done(self, stream: int) -> bool:
        return not self.streams.work[stream]


class HostCudaStep:
    """The kernels' `CudaStep`, run by `HostStep` on the same buffers."""

    def __init__(self, streams: HostStreams, **arguments) -> None:
        self._streams = streams
        a, num = arguments, arguments["num_samples"]
        io_type = TYPES[a["prediction_type"]]
        wide = a["prediction_elements"] // a["num_elements"]
        shape = (num, 1, a["num_elements"])
        like_x = {name: array_at(a[name], shape, np.float32) for name in ("x", "h1", "h2", "x_start") if a.get(name)}
        if a.get("next_input"):
            like_x["next_input"] = array_at(a["next_input"], shape, io_type)
        self._step = import_kernels().HostStep(
            array_at(a["coefficients"], (a["num_rows"], 13), np.float32),
            array_at(a["timesteps"], (a["num_rows"],), np.int32),
            **{name: a[name] for name in ("histories", "learned", "h2_is_x_start", "clip")},
            prediction=array_at(a["prediction"], (num, wide, a["num_elements"]), io_type),
            t=array_at(a["t"], (num,), np.int64 if a["t_is_int64"] else np.float32),
            **{name: array_at(a[name], (num,), np.int32) for name in ("row", "flag")},
            **{name: array_at(a[name], (num,), np.uint64) for name in ("seed", "sample_index")},
            **like_x,
            threads=1,
        )
        self.run = self._step.run

    def launch(self, stream: int = 0) -> None:
        self._streams.put(stream, self.run)


class HostKernels:
    """The CUDA part of `runtime._kernels` on this device.

    Attributes:
        refuses: names of functions that fail, as a driver without the feature would make them.
        node_types: of every graph.
        launches: how many graphs were launched.
        ranges: the NVTX ranges that were opened.
    """

    def __init__(self, streams: HostStreams) -> None:
        self._streams = streams
        self.refuses: set[str] = set()
        self.node_types = {"kernel": 7, "memset": 1}
        self.launches = 0
        self.ranges: list[str] = []
        self.open_ranges = 0
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, Work] = {}
        self._handles = itertools.count(0x9000)

    def CudaStep(self, **arguments) -> HostCudaStep:
        return HostCudaStep(self._streams, **arguments)

    def cuda_normal_launch(self, *, out, num_samples, num_elements, seed, sample_index, draw, stream) -> None:
        def fill() -> None:
            import_kernels().normal(
                array_at(out, (num_samples, num_elements), np.float32),
                array_at(seed, (num_samples,), np.uint64),
                array_at(sample_index, (num_samples,), np.uint64),
                array_at(draw, (num_samples,), np.uint32),
            )

        self._streams.put(stream, fill)

    def cuda_convert_launch(self, *, x, out, out_type, num_elements, stream) -> None:
        def convert() -> None:
            to = array_at(out, (num_elements,), TYPES[out_type])
            to[:] = rounded(array_at(x, (num_elements,), np.float32), out_type)

        self._streams.put(stream, convert)

    def cuda_set_uint32(self, address, value, stream) -> None:
        self._streams.put(stream, lambda: array_at(address, (1,), np.uint32).fill(value))

    def cuda_begin_capture(self, stream) -> None:
        assert not self._streams.work[stream], "captured on a stream with work on it"
        self._streams.recording[stream] = []

    def cuda_end_capture(self, stream) -> int:
        recorded = self._streams.recording.pop(stream)
        self._fail_if("cuda_end_capture")
        return self._new_graph(recorded)

    def cuda_graph_node_types(self, graph) -> dict[str, int]:
        assert graph in self.graphs
        return self.node_types

    def cuda_while_graph(self, network, step, turns_left, num_rows=1) -> int:
        self._fail_if("cuda_while_graph")
        body = [*self.graphs[network], step.run] * num_rows

        def loop() -> None:
            left = array_at(turns_left, (1,), np.uint32)
            while True:
                for work in body:
                    work()
                left -= 1
                if left[0] == 0:
                    return

        return self._new_graph([loop])

    def cuda_step_graph(self, network, step) -> int:
        self._fail_if("cuda_step_graph")
        return self._new_graph([*self.graphs[network], step.run])

    def cuda_graph_instantiate(self, graph) -> int:
        self._fail_if("cuda_graph_instantiate")
        body = list(self.graphs[graph])

        def run() -> None:
            for work in body:
                work()

        handle = next(self._handles)
        self.executables[handle] = run
        return handle

    def cuda_graph_upload(self, executable, stream) -> None:
        assert executable in self.executables
        self._fail_if("cuda_graph_upload")

    def cuda_graph_launch(self, executable, stream) -> None:
        self.launches += 1
        self._streams.put(stream, self.executables[executable])

    def cuda_graph_executable_destroy(self, executable) -> None:
        del self.executables[executable]

    def cuda_graph_destroy(self, graph) -> None:
        del self.graphs[graph]

    def nvtx_push(self, name) -> None:
        self.ranges.append(name)
        self.open_ranges += 1

    def nvtx_pop(self) -> None:
        self.open_ranges -= 1

    def _new_graph(self, work: list[Work]) -> int:
        handle = next(self._handles)
        self.graphs[handle] = work
        return handle

    def _fail_if(self, name: str) -> None:
        if name in self.refuses:
            raise RuntimeError(f"{name} failed: operation not supported (cudaErrorNotSupported)")
