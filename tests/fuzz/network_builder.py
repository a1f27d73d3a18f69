"""The graph that a random ε-network grows in: names, nodes, constants in every form that ONNX has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

T = TypeVar("T")
Shape = tuple[int, int, int]

# Some are names that exporters give to tensors of their own, some are what other exporters write.
STEMS = ("n", "h", "x_", "time_table", "time_tables", "time_rows", "x_low", "/down/blocks.0/out_", "ünï ", "shape_")
CONSTANT_FORMS = ("initializer", "initializer", "initializer", "node", "node attribute", "input", "identity")


class Builder:
    """A graph under construction.

    Args:
        draw: of a hypothesis strategy.
        opset: of the default domain.

    Attributes:
        nodes, initializers, functions: what was added.
        inputs: initializers that are listed as inputs too, as IR versions below 4 want it.
        domains: imported beside the default one.
        taken: names of the network's inputs and output.
    """

    def __init__(self, draw: Any, opset: int) -> None:
        self.draw, self.opset = draw, opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.domains: dict[str, int] = {}
        self.stem = self.pick(STEMS)
        self.node_names = self.pick(("none", "unique"))
        self.taken: set[str] = set()
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def pick(self, options: Sequence[T]) -> T:
        """One of several."""
        return self.draw(st.sampled_from(options))

    def flip(self) -> bool:
        """True or false."""
        return self.draw(st.booleans())

    def number(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return self.draw(st.integers(low, high))

    def name(self) -> str:
        """A name that no tensor has yet."""
        self._count += 1
        name = f"{self.stem}{self._count}" if self._count > 1 else self.stem
        return self.name() if name in self.taken else name

    def add(
        self, op: str, inputs: Sequence[str], num_outputs: int = 1, domain: str = "", **attributes: Any
    ) -> str | list[str]:
        """Append a node; its output's name, or a list where there are several."""
        outputs = [self.name() for _ in range(num_outputs)]
        given = {key: value for key, value in attributes.items() if value is not None}
        node = helper.make_node(op, list(inputs), outputs, domain=domain, **given)
        if self.node_names != "none":
            node.name = f"{op}_{self._count}"
        self.nodes.append(node)
        return outputs[0] if num_outputs == 1 else outputs

    def one(self, op: str, *inputs: str, **attributes: Any) -> str:
        """As `add`, of one output."""
        output = self.add(op, inputs, **attributes)
        assert isinstance(output, str)
        return output

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """A constant, in one of the forms there are; equal ones are sometimes shared."""
        array = np.asarray(values, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key in self._constants and self.flip():
            return self._constants[key]
        name = self._in_form(array, self.pick(CONSTANT_FORMS))
        self._constants[key] = name
        return name

    def ints(self, *values: int) -> str:
        """An int64 vector."""
        return self.constant(list(values), np.int64)

    def weights(self, *shape: int, scale: float = 0.5) -> str:
        """Random float32 numbers, by a seed."""
        values = np.random.default_rng(self.number(0, 3)).standard_normal(shape) * scale
        return self.constant(values.astype(np.float32))

    def _in_form(self, array: np.ndarray, form: str) -> str:
        name = self.name()
        if form == "node attribute" and array.dtype == np.int64 and array.ndim <= 1 and self.opset >= 12:
            kind = "value_ints" if array.ndim else "value_int"
            self.nodes.append(helper.make_node("Constant", [], [name], **{kind: array.tolist()}))
            return name
        if form == "node attribute" and array.dtype == np.float32 and array.ndim <= 1 and self.opset >= 12:
            kind = "value_floats" if array.ndim else "value_float"
            self.nodes.append(helper.make_node("Constant", [], [name], **{kind: array.tolist()}))
            return name
        if form in ("node", "node attribute"):
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, "")))
            return name
        self.initializers.append(numpy_helper.from_array(array, name))
        if form == "input":
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            self.inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
        return self.one("Identity", name) if form == "identity" else name

    # What opsets write differently.

    def reduce(self, op: str, x: str, axes: list[int], keepdims: int = 1) -> str:
        """A reduction, its axes an attribute or an input."""
        since = 13 if op == "ReduceSum" else 18
        if self.opset >= since:
            return self.one(op, x, self.ints(*axes), keepdims=keepdims)
        return self.one(op, x, axes=axes, keepdims=keepdims)

    def unsqueeze(self, x: str, axes: list[int]) -> str:
        """Axes of size 1."""
        if self.opset >= 13:
            return self.one("Unsqueeze", x, self.ints(*axes))
        return self.one("Unsqueeze", x, axes=axes)

    def squeeze(self, x: str, axes: list[int]) -> str:
        """The inverse of `unsqueeze`."""
        if self.opset >= 13:
            return self.one("Squeeze", x, self.ints(*axes))
        return self.one("Squeeze", x, axes=axes)

    def slice(self, x: str, starts: list[int], ends: list[int], axes: list[int], steps: list[int] | None = None) -> str:
        """Part of a tensor."""
        if self.opset >= 10:
            inputs = [x, self.ints(*starts), self.ints(*ends), self.ints(*axes)]
            return self.one("Slice", *inputs, *([self.ints(*steps)] if steps else []))
        return self.one("Slice", x, starts=starts, ends=ends, axes=axes)

    def reshape(self, x: str, shape: list[int], allowzero: int | None = None) -> str:
        """Another shape."""
        return self.one("Reshape", x, self.ints(*shape), allowzero=allowzero if self.opset >= 14 else None)

    def split(self, x: str, axis: int, sizes: list[int]) -> list[str]:
        """Pieces along an axis."""
        if self.opset >= 13:
            pieces = self.add("Split", [x, self.ints(*sizes)], len(sizes), axis=axis)
        else:
            pieces = self.add("Split", [x], len(sizes), axis=axis, split=sizes)
        return [pieces] if isinstance(pieces, str) else pieces

    def subgraph(self, name: str, nodes: list[onnx.NodeProto], output: str, kind: int = TensorProto.FLOAT) -> Any:
        """A branch of an If: reads from outside, gives one tensor."""
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, kind, None)])
