"""The compiled kernels, built from kernels/. Arrays are checked, used in place and never copied.

Raises, everywhere: TypeError for what is no array, ValueError for an array of another type, shape or layout than
expected, or read-only where it is written; the message names the array, what was found and what was expected.

`isa` is "auto" (the best that this CPU can run) or one of `isa_levels()`; all give the same bits. `threads` is the
most that may be used, 0 for as many as the process may run on; small work is done by one whatever it says.
"""

from typing import Any

import numpy as np

_Float32 = np.ndarray[Any, np.dtype[np.float32]]
_Int32 = np.ndarray[Any, np.dtype[np.int32]]
_UInt32 = np.ndarray[Any, np.dtype[np.uint32]]
_UInt64 = np.ndarray[Any, np.dtype[np.uint64]]
_Array = np.ndarray[Any, np.dtype[Any]]

def isa_levels() -> list[str]: ...
def has_cuda_kernels() -> bool: ...
def cuda_architectures() -> list[str]: ...
def philox(counters: _UInt32, keys: _UInt32, words: _UInt32) -> None:
    """words [M, 4] = Philox4x32-10 of counters [M, 4] under keys [M, 2]."""

def normal(
    out: _Float32,
    seed: _UInt64,
    sample_index: _UInt64,
    draw: int | _UInt32,
    *,
    isa: str = "auto",
    threads: int = 0,
) -> None:
    """Fill out [N, ...] with N samples' normal numbers, as `diffusion.normal.normal_batch`.

    `draw` is one number for all of them, or one each.
    """

def ln(x: _Float32, y: _Float32, *, isa: str = "auto") -> None: ...
def exp(x: _Float32, y: _Float32, *, isa: str = "auto") -> None: ...

class HostStep:
    """One row of a table per sample and call, in place; tests/kernels/numpy_step.py has the same bits.

    - Each sample with 0 <= row[n] < R is advanced by that row: x, h1, h2, and if given x_start and next_input (x' in
      its own type) are written. row[n] grows by one, and while it names a row, t[n] becomes its timestep. Other
      samples are idle and left untouched.
    - flag[n], if 0, becomes 1 + the row whose prediction (all channels, before clipping) or x' is not finite.
    - Arrays are bound once, held and used in place: each C-contiguous, none sharing memory with one that is written.
      `run` allocates nothing and releases the interpreter lock.

    Args:
        coefficients: [R, 13], in the order of `diffusion.step_table.COLUMNS`.
        timesteps: [R], training timesteps, 0..2**20-2; they number the noise.
        histories: 0, 1 or 2, how many of h1 and h2 the table keeps.
        learned: whether the prediction's second C channels scale the noise.
        h2_is_x_start: h2 becomes x_start, else the old h1.
        clip: bound of |x_start|, infinity for none.
        x: [N, C, ...].
        prediction: [N, C or 2C, ...], float32, float16, or uint16 that hold bfloat16.
        t: [N], float32 or int64.
        row, flag: [N].
        seed, sample_index: [N].
        h1, h2, x_start: as x.
        next_input: as x in shape, typed as prediction may be.
    """

    def __init__(
        self,
        coefficients: _Float32,
        timesteps: _Int32,
        *,
        histories: int,
        learned: bool,
        h2_is_x_start: bool,
        clip: float,
        x: _Float32,
        prediction: _Array,
        t: _Array,
        row: _Int32,
        seed: _UInt64,
        sample_index: _UInt64,
        flag: _Int32,
        h1: _Float32 | None = None,
        h2: _Float32 | None = None,
        x_start: _Float32 | None = None,
        next_input: _Array | None = None,
        isa: str = "auto",
        threads: int = 0,
    ) -> None: ...
    def run(self) -> None:
        """Advance every sample that is not idle. Raises RuntimeError if another thread is in `run`."""

    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...

# All that follows is only there where has_cuda_kernels(). Addresses are device memory as integers, 0 for none; streams,
# events, graphs (cudaGraph_t) and executable graphs (cudaGraphExec_t) are integers too. Nothing is checked but what an
# integer can tell. RuntimeError carries CUDA's own message, MemoryError too little device memory.

class CudaStep:
    """A step on device buffers: HostStep's buffers and rules, with next_input in the prediction's type.

    num_elements is C·H·W, prediction_elements that or twice it; prediction_type is "float32", "float16" or
    "bfloat16". arrivals is uint32 [N], zeroed once before the first launch and left zero by each.
    """

    def __init__(
        self,
        *,
        coefficients: int,
        timesteps: int,
        num_rows: int,
        histories: int,
        learned: bool,
        h2_is_x_start: bool,
        clip: float,
        num_samples: int,
        num_elements: int,
        prediction_elements: int,
        prediction_type: str,
        x: int,
        prediction: int,
        t: int,
        t_is_int64: bool,
        row: int,
        seed: int,
        sample_index: int,
        flag: int,
        arrivals: int,
        h1: int = 0,
        h2: int = 0,
        x_start: int = 0,
        next_input: int = 0,
    ) -> None: ...
    def launch(self, stream: int = 0) -> None:
        """Put one step on the stream."""

def cuda_step_launch(**arguments: Any) -> None:
    """Put one step on the stream: CudaStep(...).launch(stream)."""

def cuda_normal_launch(
    *, out: int, num_samples: int, num_elements: int, seed: int, sample_index: int, draw: int, stream: int = 0
) -> None:
    """Fill out, float32 [N, E], from seed and sample_index, uint64 [N], and draw, uint32 [N]."""

def cuda_convert_launch(*, x: int, out: int, out_type: str, num_elements: int, stream: int = 0) -> None:
    """out = x, float32, in another type, rounded as the step rounds its next_input."""

def cuda_set_uint32(address: int, value: int, stream: int) -> None:
    """Put the setting of one uint32 on the stream."""

def cuda_begin_capture(stream: int) -> None:
    """From now on what this thread puts on the stream is recorded, not run."""

def cuda_end_capture(stream: int) -> int:
    """The recorded graph, which the caller destroys."""

def cuda_graph_node_types(graph: int) -> dict[str, int]:
    """How many nodes of each type there are, those of child graphs included: "kernel", "memcpy", "host", …"""

def cuda_while_graph(network: int, step: CudaStep, turns_left: int, num_rows: int = 1) -> int:
    """WHILE { num_rows times: network, step }.

    A launch takes as many turns as the uint32 at turns_left says, at least one, and leaves 0 there.
    """

def cuda_step_graph(network: int, step: CudaStep) -> int:
    """{ network, step }: a launch runs one row. The network's graph is copied, its buffers and kernels are not."""

def cuda_graph_instantiate(graph: int) -> int:
    """An executable graph, which the caller destroys."""

def cuda_graph_upload(executable: int, stream: int) -> None:
    """Put what a first launch would do besides on the stream."""

def cuda_graph_launch(executable: int, stream: int) -> None:
    """Put one run on the stream."""

def cuda_graph_executable_destroy(executable: int) -> None: ...
def cuda_graph_destroy(graph: int) -> None: ...
def cuda_device_count() -> int: ...
def cuda_device_facts(ordinal: int) -> dict[str, Any]:
    """name, compute_capability, num_multiprocessors, memory_bytes, l2_bytes, driver_ and runtime_cuda_version."""

def cuda_set_device(ordinal: int) -> None:
    """Make a device's primary context current in this thread."""

def cuda_allocate(size_bytes: int) -> int: ...
def cuda_free(address: int) -> None: ...
def cuda_memory_info() -> tuple[int, int]:
    """Free and total bytes of the current device."""

def cuda_copy_to_device(address: int, array: _Array, stream: int) -> None:
    """Done when this returns."""

def cuda_copy_to_host(array: _Array, address: int, stream: int) -> None:
    """After what is on the stream; done when this returns."""

def cuda_copy(to: int, from_: int, size_bytes: int, stream: int) -> None:
    """Put a copy from device to device on the stream."""

def cuda_fill(address: int, value: int, size_bytes: int, stream: int) -> None:
    """Put the setting of every byte on the stream."""

def cuda_stream_create() -> int:
    """A stream that does not wait for the default stream."""

def cuda_stream_destroy(stream: int) -> None: ...
def cuda_stream_synchronize(stream: int) -> None:
    """Wait for what is on the stream."""

def cuda_stream_is_done(stream: int) -> bool: ...
def cuda_event_create() -> int:
    """An event that keeps time."""

def cuda_event_destroy(event: int) -> None: ...
def cuda_event_record(event: int, stream: int) -> None: ...
def cuda_event_synchronize(event: int) -> None: ...
def cuda_event_elapsed_ms(start: int, end: int) -> float:
    """Milliseconds between two recorded events."""

def nvtx_push(name: str) -> None:
    """Begin a named range for profilers; nothing where the toolkit had no NVTX."""

def nvtx_pop() -> None: ...
