"""What the nodes of an ONNX graph do with a value, read without a library that reads ONNX."""

from __future__ import annotations

from pathlib import Path

from runtime.engines.protobuf_wire import WireFile, number, span

# Fields of onnx.proto, message by message.
_MODEL_GRAPH, _GRAPH_NODE = span(7), span(1)
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = span(1), span(2), span(4), span(5)
_ATTRIBUTE_NAME, _ATTRIBUTE_NUMBERS, _ATTRIBUTE_PACKED = span(1), number(8), span(8)


def begins_with_transpose(path: Path, value: str, perm: tuple[int, ...]) -> bool:
    """Whether a value is transposed so by a node that reads it, itself or a copy or a cast of it.

    Args:
        path: an ONNX file; what is none is its reader's to report.
        value: its name.
        perm: the attribute of Transpose, numbers below 128.
    """
    try:
        with path.open("rb", buffering=0) as file:
            wire = WireFile(file)
            nodes = [
                _node(wire, start, end)
                for tag, first, last in wire.fields(0, wire.size)
                if tag == _MODEL_GRAPH
                for kind, start, end in wire.fields(first, last)
                if kind == _GRAPH_NODE
            ]
    except (OSError, ValueError, OverflowError):
        return False
    same = {value.encode()}
    for operator, inputs, outputs, numbers in nodes:  # in the order in which they are computed
        if inputs and inputs[0] in same:
            if operator == b"Transpose" and numbers == list(perm):
                return True
            if operator in (b"Identity", b"Cast"):
                same.update(outputs)
    return False


def _node(wire: WireFile, start: int, end: int) -> tuple[bytes, list[bytes], list[bytes], list[int]]:
    """Operator, inputs, outputs, and the attribute `perm`."""
    operator = b""
    inputs: list[bytes] = []
    outputs: list[bytes] = []
    perm: list[int] = []
    for tag, first, last in wire.fields(start, end):
        if tag == _NODE_INPUT:
            inputs.append(wire.content(first, last))
        elif tag == _NODE_OUTPUT:
            outputs.append(wire.content(first, last))
        elif tag == _NODE_OPERATOR:
            operator = wire.content(first, last)
        elif tag == _NODE_ATTRIBUTE and operator in (b"", b"Transpose"):
            perm = _perm(wire, first, last) or perm
    return operator, inputs, outputs, perm


def _perm(wire: WireFile, start: int, end: int) -> list[int]:
    name = b""
    numbers: list[int] = []
    for tag, first, last in wire.fields(start, end):
        if tag == _ATTRIBUTE_NAME:
            name = wire.content(first, last) if last - first == 4 else b""
        elif tag == _ATTRIBUTE_NUMBERS:
            numbers.append(first)
        elif tag == _ATTRIBUTE_PACKED and last - first < 16:
            numbers += list(wire.content(first, last))  # each below 128 is one byte
    return numbers if name == b"perm" else []
