"""The host's memory in the place of a GPU's: what is an address there is one here."""

from __future__ import annotations

import ctypes

import numpy as np

ADDRESS_UNIT = 256


class HostMemory:
    """A `DeviceMemory` whose addresses are the host's."""

    name = "host memory"

    def __init__(self) -> None:
        self.blocks: dict[int, np.ndarray] = {}
        self.streams: set[int] = set()
        self.synchronized: list[int] = []

    def allocate(self, size_bytes):
        block = np.full(size_bytes + 2 * ADDRESS_UNIT, 0xFF, np.uint8)  # NaN, and no timestep
        address = -(-block.ctypes.data // ADDRESS_UNIT) * ADDRESS_UNIT
        self.blocks[address] = block
        return address

    def free(self, address):
        del self.blocks[address]

    def free_bytes(self):
        return 1 << 30

    def to_device(self, address, array, stream):
        assert array.flags.c_contiguous
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def to_host(self, array, address, stream):
        assert array.flags.c_contiguous
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def zero(self, address, size_bytes, stream):
        ctypes.memset(address, 0, size_bytes)

    def make_stream(self):
        self.streams.add(max(self.streams, default=0) + 1)
        return max(self.streams)

    def free_stream(self, stream):
        self.streams.remove(stream)

    def synchronize(self, stream):
        self.synchronized.append(stream)

    def is_done(self, stream):
        return True


def at_address(address: int, shape: tuple[int, ...], dtype) -> np.ndarray:
    """The array that lies there."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * count).from_address(address), dtype).reshape(shape)
