"""NumPy arrays and their copies on the device, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import numpy as np

from runtime.device.interface import DeviceMemory


class DeviceArrays:
    """Arrays copied to the device, until the end of a `with` block.

    Args:
        memory: of the device.
        arrays: C-contiguous.
        offset_bytes: from the start of each allocation, to try addresses that are not aligned.

    Attributes:
        stream: of its own.
        addresses: by name.
    """

    def __init__(self, memory: DeviceMemory, arrays: Mapping[str, np.ndarray], offset_bytes: int = 0) -> None:
        self._memory, self._bases = memory, dict[str, int]()
        self._like = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        self.addresses: dict[str, int] = {}
        self.stream = memory.make_stream()
        try:
            for name, array in arrays.items():
                self._bases[name] = memory.allocate(array.nbytes + offset_bytes)
                self.addresses[name] = self._bases[name] + offset_bytes
                memory.to_device(self.addresses[name], array, self.stream)
        except BaseException:
            self.free()
            raise

    def __enter__(self) -> DeviceArrays:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.free()

    def read(self, name: str) -> np.ndarray:
        """A copy of what is there now, after what is on the stream."""
        shape, kind = self._like[name]
        array = np.empty(shape, kind)
        self._memory.to_host(array, self.addresses[name], self.stream)
        return array

    def write(self, name: str, array: np.ndarray) -> None:
        """Replace what is there."""
        shape, kind = self._like[name]
        assert (array.shape, array.dtype) == (shape, kind)
        self._memory.to_device(self.addresses[name], array, self.stream)

    def free(self) -> None:
        """Wait, and give everything back."""
        self._memory.synchronize(self.stream)
        for base in self._bases.values():
            self._memory.free(base)
        self._bases.clear()
        self._memory.free_stream(self.stream)


def differing_elements(actual: np.ndarray, expected: np.ndarray) -> int:
    """How many elements have other bits; what is not a number in both is the same, whatever its bits.

    uint16 is taken for bfloat16, which NumPy does not have.
    """
    unsigned = f"u{expected.dtype.itemsize}"
    differ = actual.reshape(-1).view(unsigned) != expected.reshape(-1).view(unsigned)
    return int(np.count_nonzero(differ & ~(_not_a_number(actual) & _not_a_number(expected))))


def _not_a_number(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(-1)
    if flat.dtype == np.uint16:
        return (flat & 0x7FFF) > 0x7F80
    return np.isnan(flat) if flat.dtype.kind == "f" else np.zeros(flat.shape, bool)
