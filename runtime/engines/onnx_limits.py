"""What an ONNX graph of somebody else's may ask for: rounds, nodes and constants, counted before a backend opens it.

A file of some kilobytes may describe a loop that never ends, functions that call each other a billion times, or a
constant of eight gigabytes, which a backend makes as soon as it opens the file; and no Ctrl-C reaches a backend.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.errors import InputError

if TYPE_CHECKING:
    import onnx

MAX_NODES = 2**17
"""Twenty times those of the largest published U-Nets."""
MAX_ROUNDS = 2**16
"""Of a loop, and of the loops inside it together."""
MAX_DEPTH = 8
"""Of branches and loops in each other; backends take twice as long with each."""
MAX_CONSTANT_BYTES = 2**28
"""Of what is computed from constants alone, when the file is opened."""
# Tensors that are no shapes are not needed to infer some.
_SHAPE_BYTES = 2**10

_Functions = Mapping[tuple[str, str], Any]


def check_limits(path: Path, model: onnx.ModelProto) -> None:
    """Raises InputError for a graph that asks for too much, or does not say how much."""
    functions = {(each.domain, each.name): each for each in model.functions}
    _Counter(path, functions).check(model.graph)
    constants = _constant_bytes(model)
    if constants > MAX_CONSTANT_BYTES:
        raise InputError(
            f"{path}: computes {constants} bytes from constants alone, expected at most {MAX_CONSTANT_BYTES}; "
            "export the network without them"
        )


class _Counter:
    def __init__(self, path: Path, functions: _Functions) -> None:
        self._path, self._functions = path, functions
        self._known: dict[tuple[str, str], int] = {}
        self._open: set[tuple[str, str]] = set()

    def check(self, graph: Any) -> None:
        num = self._nodes(graph.node, _numbers(graph), 1, 0)
        if num > MAX_NODES:
            raise self._refused(f"has {num} nodes, expected at most {MAX_NODES}", "simplify the network")

    def _nodes(self, nodes: Iterable[Any], numbers: Mapping[str, int], rounds: int, depth: int) -> int:
        """How many there are once functions are written out; loops count once."""
        if depth > MAX_DEPTH:
            raise self._refused(f"has graphs in graphs, more than {MAX_DEPTH} deep", "export the network without them")
        num = 0
        for node in nodes:
            num += 1
            inner = rounds
            if node.op_type == "Loop" and node.domain in ("", "ai.onnx"):
                inner = rounds * self._trips(node, numbers)
                if inner > MAX_ROUNDS:
                    raise self._refused(
                        f"has a loop of {inner} rounds, expected at most {MAX_ROUNDS}", "export it unrolled"
                    )
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    num += self._nodes(graph.node, {**numbers, **_numbers(graph)}, inner, depth + 1)
            num += self._of_function((node.domain, node.op_type), inner, depth)
        return num

    def _of_function(self, name: tuple[str, str], rounds: int, depth: int) -> int:
        function = self._functions.get(name)
        if function is None:
            return 0
        if name in self._open:
            raise self._refused(f"has a function {name[1]!r} that calls itself", "export it without functions")
        if name not in self._known:
            self._open.add(name)
            self._known[name] = self._nodes(function.node, _numbers(function), rounds, depth)
            self._open.remove(name)
        return self._known[name]

    def _trips(self, node: Any, numbers: Mapping[str, int]) -> int:
        found = numbers.get(node.input[0]) if node.input else None
        if found is None:
            raise self._refused("has a loop and no number of its rounds: it may never end", "export it unrolled")
        return max(found, 1)

    def _refused(self, what: str, remedy: str) -> InputError:
        return InputError(f"{self._path}: {what}; {remedy}")


def _numbers(graph: Any) -> dict[str, int]:
    """The single whole numbers among a graph's constants, by name."""
    from onnx import numpy_helper

    tensors = [(each.name, each) for each in getattr(graph, "initializer", ())]
    found = {}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value_int":
                found[node.output[0]] = int(attribute.i)
            elif attribute.name == "value":
                tensors.append((node.output[0], attribute.t))
    for name, tensor in tensors:
        if tensor.data_type in (6, 7) and math.prod(tensor.dims) == 1 and not tensor.external_data:
            found[name] = int(numpy_helper.to_array(tensor).reshape(()))
    return found


def _constant_bytes(model: onnx.ModelProto) -> int:
    """Of the values that depend on no input, as far as their shapes can be known without computing them."""
    import onnx

    known = {each.name for each in model.graph.initializer}
    values = set[str]()
    for node in model.graph.node:
        has_graph = any(each.HasField("g") for each in node.attribute)
        if not has_graph and all(not name or name in known for name in node.input):
            known.update(node.output)
            if node.op_type != "Constant":  # whose value is in the file
                values.update(node.output)
    if not values:
        return 0
    slim = onnx.ModelProto()
    slim.CopyFrom(model)
    for tensor in slim.graph.initializer:
        if tensor.ByteSize() > _SHAPE_BYTES:
            slim.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    kept = [tensor for tensor in slim.graph.initializer if tensor.ByteSize() <= _SHAPE_BYTES]
    del slim.graph.initializer[:]
    slim.graph.initializer.extend(kept)
    try:
        inferred = onnx.shape_inference.infer_shapes(slim, data_prop=True)
    except Exception:  # a graph that does not fit together, which its backend says
        return 0
    total = 0
    for info in inferred.graph.value_info:
        sizes = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        if info.name in values and min(sizes, default=1) > 0:
            total += 4 * math.prod(sizes)
    return total
