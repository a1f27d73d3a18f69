"""Device memory of one chain: how much it is, known beforehand, and where everything lies in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffusion.step_table import COLUMNS, StepTable
from runtime.device.interface import DeviceEngine
from runtime.formats.precision import ELEMENT_TYPES

T_TYPES: dict[str, type[np.generic]] = {"float32": np.float32, "int64": np.int64}
"""Types that its timesteps may have."""

# Every buffer begins at a multiple of this, for 16-byte accesses and for what TensorRT asks of its tensors.
_ALIGNMENT = 256


@dataclass(frozen=True)
class ChainLayout:
    """Where the buffers of a chain of N samples lie, in bytes from the start of one allocation.

    Attributes:
        offsets: by name: `x`, `prediction`; `next_input`, absent where the network reads x itself; `h1`, `h2` and
            `x_start`, where there are any; `coefficients`, `timesteps`; `condition_0` and so on; `control`.
        control: what is kept for each sample, by name: the place in the control block and the type. `turns_left` is
            one number.
        control_bytes: of the control block.
        size_bytes: of everything.
    """

    offsets: dict[str, int]
    control: dict[str, tuple[int, type[np.generic]]]
    control_bytes: int
    size_bytes: int


def chain_layout(engine: DeviceEngine, table: StepTable, batch_size: int, with_x_start: bool) -> ChainLayout:
    """The buffers that a chain needs beside what the engine keeps for itself."""
    shape = engine.process.sample
    elements = batch_size * shape.num_elements
    io_bytes = ELEMENT_TYPES[engine.io_type].num_bytes
    control: dict[str, tuple[int, type[np.generic]]] = {}
    control_bytes = 0
    types: dict[str, type[np.generic]] = {
        "t": T_TYPES[engine.t_type],  # first, so aligned as the block is: the network reads it too
        "seed": np.uint64,
        "sample_index": np.uint64,
        "row": np.int32,
        "flag": np.int32,
        "draw": np.uint32,
        "arrivals": np.uint32,
        "turns_left": np.uint32,
    }
    for name, kind in types.items():
        control[name] = (control_bytes, kind)
        size = np.dtype(kind).itemsize * (1 if name == "turns_left" else batch_size)
        control_bytes += _rounded_up(size, 8)
    sizes = {
        "x": 4 * elements,
        "prediction": io_bytes * batch_size * engine.process.prediction_channels * shape.height * shape.width,
        "next_input": io_bytes * elements if engine.io_type != "float32" else 0,
        "h1": 4 * elements if table.histories >= 1 else 0,
        "h2": 4 * elements if table.histories == 2 else 0,
        "x_start": 4 * elements if with_x_start else 0,
        "coefficients": 4 * len(table) * len(COLUMNS),
        "timesteps": 4 * len(table),
        **{
            condition_name(place): batch_size * each.num_elements * np.dtype(each.type).itemsize
            for place, each in enumerate(engine.process.conditions)
        },
        "control": control_bytes,
    }
    offsets, end = {}, 0
    for name, size in sizes.items():
        if size:
            offsets[name] = end
            end += _rounded_up(size, _ALIGNMENT)
    return ChainLayout(offsets, control, control_bytes, end)


def condition_name(place: int) -> str:
    """What the buffer of a process's condition is called."""
    return f"condition_{place}"


class ChainBuffers:
    """The memory itself, and the host's copy of what is kept for each sample.

    Args:
        engine: whose memory it is taken from, and whose types decide.
        table: whose rows are copied to the device.
        batch_size: N.
        with_x_start: whether there is room for x_start.
        stream: for the copies.

    Attributes:
        layout: what lies where.
        control: the host's copies by name, each [N]; `upload` sends them all.

    Raises:
        InputError: there is not that much device memory.
    """

    def __init__(
        self, engine: DeviceEngine, table: StepTable, batch_size: int, with_x_start: bool, stream: int
    ) -> None:
        self.layout = chain_layout(engine, table, batch_size, with_x_start)
        self._memory = engine.memory
        self._base = self._memory.allocate(self.layout.size_bytes)
        self._block = np.zeros(self.layout.control_bytes, dtype=np.uint8)
        self.control = {name: self._view(self._block, name, batch_size) for name in self.layout.control}
        # What no launch has written yet is read by the network of an idle sample: zeros are finite.
        self._memory.zero(self._base, self.layout.size_bytes, stream)
        self.control["row"][:] = -1  # idle: the first sample may begin beside slots that never had one
        self.upload(stream)
        self._memory.to_device(self.address("coefficients"), np.ascontiguousarray(table.cast()), stream)
        self._memory.to_device(self.address("timesteps"), table.timesteps.astype(np.int32), stream)

    def address(self, name: str) -> int:
        """Where a buffer, or one of the control block, lies on the device; 0 if this chain has none."""
        if name in self.layout.control:
            return self._base + self.layout.offsets["control"] + self.layout.control[name][0]
        return self._base + self.layout.offsets[name] if name in self.layout.offsets else 0

    def upload(self, stream: int) -> None:
        """Send the host's copy of the control block."""
        self._memory.to_device(self.address("control"), self._block, stream)

    def download(self, stream: int) -> None:
        """Bring the host's copy of the control block up to date, after what is on the stream."""
        self._memory.to_host(self._block, self.address("control"), stream)

    def write_rows(self, first: int, coefficients: np.ndarray, timesteps: np.ndarray, stream: int) -> None:
        """Send rows of coefficients, float32 [R, 13], and their timesteps, after what is on the stream.

        Args:
            first: their place.
            coefficients: of these rows.
            timesteps: of all rows, int32.
            stream: for the copies.
        """
        last = first + len(coefficients)
        at = self.address("coefficients") + coefficients.itemsize * len(COLUMNS) * first
        self._memory.to_device(at, np.ascontiguousarray(coefficients), stream)
        self._memory.to_device(
            self.address("timesteps") + timesteps.itemsize * first, np.ascontiguousarray(timesteps[first:last]), stream
        )

    def free(self) -> None:
        """Give the memory back; nothing may be running on it."""
        if self._base:
            self._memory.free(self._base)
            self._base = 0

    def _view(self, block: np.ndarray, name: str, batch_size: int) -> np.ndarray:
        place, kind = self.layout.control[name]
        count = 1 if name == "turns_left" else batch_size
        return block[place : place + count * np.dtype(kind).itemsize].view(kind)


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
