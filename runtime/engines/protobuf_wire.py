"""Protocol Buffers on the wire: a message's fields, found in a file of any size without reading what is between them.

The encoding is https://protobuf.dev/programming-guides/encoding. Everything is a position in the file, in bytes; a
message is what lies from one position to another. Whoever writes the file is not trusted: what is no message, and what
would take more time or memory than a network's graph does, is a ValueError.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

# A U-Net of 35.7 million parameters has 9,000 fields that are looked at, and names of 42 kB.
MAX_FIELDS = 2**20
"""Fields that are looked at in one file, which limits the time."""

MAX_BYTES = 2**25
"""Bytes of content that are handed out of one file, which limits the memory."""

_VARINT, _WITH_LENGTH = 0, 2
_FIXED_SIZES = {1: 8, 5: 4}
_BLOCK_BYTES = 4096
_LONGEST_VARINT = 10


def number(field: int) -> int:
    """The tag of a field that is a whole number."""
    return field << 3 | _VARINT


def span(field: int) -> int:
    """The tag of a field that has a length: a message, a text, bytes."""
    return field << 3 | _WITH_LENGTH


class WireFile:
    """A file of Protocol Buffers.

    Args:
        file: open, and best without a buffer, for it has one of its own.

    Attributes:
        size: of the file, in bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        self._block, self._block_start = b"", 0
        self._num_fields = self._num_bytes = 0

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The fields of the message from `start` to `end`, as they come.

        Yields:
            Tag, value, end. The value of a `number` is itself, without a sign; of a `span`, it is where its content
            begins, and the end is where that ends. Other tags' values mean nothing.

        Raises:
            ValueError: this is no message, or the file has more than `MAX_FIELDS`.
        """
        position = start
        while position < end:
            self._num_fields += 1
            if self._num_fields > MAX_FIELDS:
                raise ValueError(f"more than {MAX_FIELDS} fields")
            tag, position = self._varint(position)
            wire_type = tag & 7
            value = position
            if wire_type == _WITH_LENGTH:
                size, value = self._varint(position)
                position = value + size
            elif wire_type == _VARINT:
                value, position = self._varint(position)
            elif wire_type in _FIXED_SIZES:
                position += _FIXED_SIZES[wire_type]
            else:
                raise ValueError(f"wire type {wire_type}")
            if tag < 8:
                raise ValueError("field 0")
            if position > end:
                raise ValueError("longer than what holds it")
            yield tag, value, position

    def content(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`. Raises ValueError past `MAX_BYTES` of one file, and for bytes it lacks."""
        size = end - start
        self._num_bytes += size
        if self._num_bytes > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        at = start - self._block_start
        found = self._block[at : at + size] if at >= 0 else b""
        if len(found) < size:
            self._file.seek(start)
            found = self._file.read(size)
            if len(found) < size:
                raise ValueError("truncated")
        return found

    def _varint(self, position: int) -> tuple[int, int]:
        """The number there, and where it ends."""
        at = position - self._block_start
        if not 0 <= at < len(self._block) - _LONGEST_VARINT:
            self._file.seek(position)
            self._block, self._block_start, at = self._file.read(_BLOCK_BYTES), position, 0
        try:
            byte = self._block[at]
            if byte < 0x80:  # most are
                return byte, position + 1
            value = 0
            for place in range(_LONGEST_VARINT):
                byte = self._block[at + place]
                value |= (byte & 0x7F) << 7 * place
                if byte < 0x80:
                    return value, position + place + 1
        except IndexError:
            raise ValueError("truncated") from None
        raise ValueError("number of more than 64 bits")
