"""Fields of Protocol Buffers, found without reading what is between them."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines import protobuf_wire
from runtime.engines.protobuf_wire import WireFile, number, span

FIELDS = st.lists(
    st.tuples(st.integers(1, 2**29 - 1), st.integers(0, 2**64 - 1) | st.binary(max_size=5000)),
    max_size=30,
)


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes([value])


def encoded(fields: Iterable[tuple[int, int | bytes]]) -> bytes:
    parts = []
    for place, value in fields:
        if isinstance(value, int):
            parts.append(varint(place << 3) + varint(value))
        else:
            parts.append(varint(place << 3 | 2) + varint(len(value)) + value)
    return b"".join(parts)


@given(fields=FIELDS)
def test_what_was_written_is_found(fields: list[tuple[int, int | bytes]]) -> None:
    content = encoded(fields)
    wire = WireFile(io.BytesIO(content))
    found = []
    for tag, value, end in wire.fields(0, wire.size):
        inside = tag == span(tag >> 3)
        assert inside or tag == number(tag >> 3)
        found.append((tag >> 3, wire.content(value, end) if inside else value))
    assert found == fields


@given(content=st.binary(max_size=300))
def test_junk_is_refused_or_read_to_its_end(content: bytes) -> None:
    wire = WireFile(io.BytesIO(content))
    last = 0
    try:
        for _, _, end in wire.fields(0, wire.size):
            assert last < end <= len(content)
            last = end
    except ValueError:
        return
    assert last == len(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x08", "truncated"),
        (b"\x08\x80", "truncated"),
        (b"\x0a\x02a", "longer than what holds it"),
        (b"\x0d\x00\x00\x00", "longer than what holds it"),
        (b"\x0b", "wire type 3"),
        (b"\x02\x00", "field 0"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "number of more than 64 bits"),
    ],
)
def test_reasons(content: bytes, reason: str) -> None:
    wire = WireFile(io.BytesIO(content))
    with pytest.raises(ValueError, match=reason):
        list(wire.fields(0, wire.size))


def test_other_wire_types_are_passed_over() -> None:
    content = b"\x09" + bytes(8) + b"\x15" + bytes(4) + b"\x18\x05"
    wire = WireFile(io.BytesIO(content))
    assert [(tag >> 3, end) for tag, _, end in wire.fields(0, wire.size)] == [(1, 9), (2, 14), (3, 16)]


def test_what_is_passed_over_is_not_read() -> None:
    class Counted(io.BytesIO):
        read_bytes = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            self.read_bytes += len(found)
            return found

    file = Counted(encoded([(1, bytes(10**6)), (2, 7)] * 5))
    wire = WireFile(file)
    assert len(list(wire.fields(0, wire.size))) == 10
    assert file.read_bytes < 10**5


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded([(1, b"abc")] * 4)
    monkeypatch.setattr(protobuf_wire, "MAX_FIELDS", 3)
    wire = WireFile(io.BytesIO(content))
    with pytest.raises(ValueError, match="more than 3 fields"):
        list(wire.fields(0, wire.size))
    monkeypatch.setattr(protobuf_wire, "MAX_BYTES", 5)
    wire = WireFile(io.BytesIO(content))
    assert wire.content(2, 5) == b"abc"
    with pytest.raises(ValueError, match="more than 5 bytes"):
        wire.content(7, 10)
