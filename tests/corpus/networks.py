"""ONNX files that are no network, one that never ends, one that nobody has room for, or whose weights lie elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.corpus.case import Case, Make, case
from tests.fuzz.work_folder import PROCESS

_LINES = {
    "sample": "runtime.sample --num 3 --steps 2 --threads 1 --out new --engine bad.onnx",
    "inspect": "export.inspect bad.onnx",
    "openvino": "export.to_openvino --onnx bad.onnx --out new.xml",
    "trt": "export.to_trt --onnx bad.onnx --out new.plan",
}
_FLOAT, _INT = TensorProto.FLOAT, TensorProto.INT64


def _model(
    nodes: list[Any],
    weights: list[Any] | None = None,
    process: Any = None,
    inputs: dict[str, Any] | None = None,
    outputs: dict[str, Any] | None = None,
    functions: list[Any] | None = None,
    opset: int = 18,
    ir_version: int = 9,
) -> onnx.ModelProto:
    """An ε-network of these nodes, which read x and t and write prediction; not checked."""
    inputs = inputs or {"x": (_FLOAT, ["N", 1, 4, 4]), "t": (_FLOAT, ["N"])}
    outputs = outputs or {"prediction": (_FLOAT, ["N", 1, 4, 4])}
    infos = [
        [helper.make_tensor_value_info(name, *facts) for name, facts in group.items()] for group in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "bad", *infos, weights or [])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=functions or [])
    helper.set_model_props(model, {"ddpm-rt": json.dumps(PROCESS.to_json() if process is None else process)})
    return model


def _node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return helper.make_node(op, inputs, outputs, **attributes)


_END = [_node("Identity", ["x"], ["prediction"])]
_USES_T = [
    _node("Reshape", ["t", "column"], ["t4"]), _node("Mul", ["x", "t4"], ["p"]),
]  # fmt: skip
_COLUMN = numpy_helper.from_array(np.array([-1, 1, 1, 1]), "column")


def _loop(trips: int | None) -> onnx.ModelProto:
    """prediction = x after a loop of so many rounds; None for one without end."""
    boolean = TensorProto.BOOL
    inputs = (("i", _INT, []), ("going", boolean, []), ("state", _FLOAT, None))
    outputs = (("goes_on", boolean, []), ("next", _FLOAT, None))
    body = helper.make_graph(
        [_node("Identity", ["going"], ["goes_on"]), _node("Identity", ["state"], ["next"])],
        "body",
        [helper.make_tensor_value_info(*facts) for facts in inputs],
        [helper.make_tensor_value_info(*facts) for facts in outputs],
    )
    weights = [_COLUMN, numpy_helper.from_array(np.array(True), "yes")]
    if trips is not None:
        weights.append(numpy_helper.from_array(np.array(trips), "trips"))
    loop = _node("Loop", ["" if trips is None else "trips", "yes", "p"], ["prediction"], body=body)
    return _model([*_USES_T, loop], weights)


def _many(num: int) -> onnx.ModelProto:
    """One node again and again: as bytes, since a million objects take a minute to make."""
    model, node = _model(_END), _END[0].SerializeToString()
    model.graph.MergeFromString((b"\x0a" + bytes([len(node)]) + node) * num)
    return model


def _functions(depth: int, width: int) -> onnx.ModelProto:
    """Functions that call each other `width` times each: width^depth nodes in a small file."""
    functions, opsets = [], [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    for level in range(depth):
        op, domain = ("Neg", "") if level == 0 else (f"f{level - 1}", "own")
        nodes = [
            helper.make_node(op, ["a" if i == 0 else f"h{i - 1}"], ["b" if i == width - 1 else f"h{i}"], domain=domain)
            for i in range(width)
        ]
        functions.append(helper.make_function("own", f"f{level}", ["a"], ["b"], nodes, opsets))
    last = helper.make_node(f"f{depth - 1}", ["x"], ["prediction"], domain="own")
    return _model([last], functions=functions)


def _recursive() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    nodes = [helper.make_node("f", ["a"], ["b"], domain="own")]
    function = helper.make_function("own", "f", ["a"], ["b"], nodes, opsets)
    return _model([helper.make_node("f", ["x"], ["prediction"], domain="own")], functions=[function])


def _deep_ifs(depth: int) -> onnx.ModelProto:
    """Branches inside branches."""
    out = [helper.make_tensor_value_info("y", _FLOAT, None)]
    graph = helper.make_graph([_node("Identity", ["x"], ["y"])], "g", [], out)
    for _ in range(depth):
        other = helper.make_graph([_node("Identity", ["x"], ["y"])], "e", [], out)
        graph = helper.make_graph([_node("If", ["yes"], ["y"], then_branch=graph, else_branch=other)], "g", [], out)
    node = _node("If", ["yes"], ["prediction"], then_branch=graph, else_branch=graph)
    return _model([node], [numpy_helper.from_array(np.array(True), "yes")])


def _claimed(num: int) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=_FLOAT, dims=[num])
    return _model([_node("Add", ["x", "w"], ["prediction"])], [tensor])


def _filled(*shape: int) -> onnx.ModelProto:
    """A constant of a shape that is made when the file is opened."""
    sizes = numpy_helper.from_array(np.array(shape), "sizes")
    nodes = [_node("ConstantOfShape", ["sizes"], ["big"]), _node("ReduceSum", ["big"], ["sum"], keepdims=0),
             *_USES_T, _node("Add", ["p", "sum"], ["prediction"])]  # fmt: skip
    return _model(nodes, [sizes, _COLUMN])


def _outside(location: str, length: int | None = None, offset: int | None = None) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=_FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("length", length), ("offset", offset)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    nodes = [_node("Reshape", ["w", "square"], ["v"]), _node("Add", ["x", "v"], ["prediction"])]
    return _model(nodes, [tensor, numpy_helper.from_array(np.array([1, 1, 4, 4]), "square")])


def _conditional(**condition: Any) -> onnx.ModelProto:
    described = PROCESS.to_json() | {"format": 2, "conditions": [condition]}
    inputs = {"x": (_FLOAT, ["N", 1, 4, 4]), "t": (_FLOAT, ["N"]), "y": (_INT, ["N"])}
    return _model(_END, process=described, inputs=inputs)


def _of_shape(*shape: Any) -> onnx.ModelProto:
    described = PROCESS.to_json()
    described["sample"] |= {"channels": shape[1], "height": shape[2], "width": shape[3]}
    facts = {"x": (_FLOAT, ["N", "C", "H", "W"]), "t": (_FLOAT, ["N"])}
    return _model(_END, process=described, inputs=facts, outputs={"prediction": (_FLOAT, ["N", "C", "H", "W"])})


def _networks() -> dict[str, Callable[[], onnx.ModelProto]]:
    x = (_FLOAT, ["N", 1, 4, 4])
    return {
        "a loop without end": lambda: _loop(None),
        "a loop of 2^62 rounds": lambda: _loop(2**62),
        "half a million nodes": lambda: _many(500_000),
        "functions of 10^9 nodes": lambda: _functions(9, 10),
        "a function that calls itself": _recursive,
        "branches 25 deep": lambda: _deep_ifs(25),
        "weights of 10^12 numbers": lambda: _claimed(10**12),
        "weights of -1 numbers": lambda: _claimed(-1),
        "a constant of 32 GiB": lambda: _filled(2**33),
        "a constant of 8 GiB": lambda: _filled(2**15, 2**16),
        "a constant of 2^100 numbers": lambda: _filled(2**50, 2**50),
        "no nodes": lambda: _model([]),
        "no inputs": lambda: _model(_END, inputs={"z": (_FLOAT, [1])}),
        "one input": lambda: _model(_END, inputs={"x": x}),
        "four inputs": lambda: _model(_END, inputs=dict.fromkeys("xtuv", x)),
        "texts": lambda: _model(_END, inputs={"x": (TensorProto.STRING, ["N", 1, 4, 4]), "t": (_FLOAT, ["N"])}),
        "no type": lambda: _model(_END, inputs={"x": (0, ["N", 1, 4, 4]), "t": (_FLOAT, ["N"])}),
        "type 99": lambda: _model(_END, inputs={"x": (99, ["N", 1, 4, 4]), "t": (_FLOAT, ["N"])}),
        "size -5": lambda: _model(_END, inputs={"x": (_FLOAT, [-5, 1, 4, 4]), "t": (_FLOAT, ["N"])}),
        "batch 2^40": lambda: _model(_END, inputs={"x": (_FLOAT, [2**40, 1, 4, 4]), "t": (_FLOAT, [2**40])}),
        "batch 0": lambda: _model(_END, inputs={"x": (_FLOAT, [0, 1, 4, 4]), "t": (_FLOAT, [0])}),
        "no output": lambda: _model([_node("Identity", ["x"], ["nothing"])]),
        "an output of another shape": lambda: _model(_END, outputs={"prediction": (_FLOAT, ["N", 7])}),
        "an unknown operator": lambda: _model([_node("Frobnicate", ["x"], ["prediction"])]),
        "an unknown domain": lambda: _model([helper.make_node("F", ["x"], ["prediction"], domain="elsewhere")]),
        "a cycle": lambda: _model([_node("Add", ["x", "prediction"], ["prediction"])]),
        "opset 9999": lambda: _model(_END, opset=9999),
        "opset -1": lambda: _model(_END, opset=-1),
        "IR 9999": lambda: _model(_END, ir_version=9999),
        "a name twice": lambda: _model([*_END, *_END]),
        "10^12 classes": lambda: _conditional(name="y", type="int64", shape=[], classes=10**12),
        "10^30 classes": lambda: _conditional(name="y", type="int64", shape=[], classes=10**30),
        "null 2^70": lambda: _conditional(name="y", type="int64", shape=[], classes=2**80, null=2**70),
        "a condition of 10^12 numbers": lambda: _conditional(name="y", type="float32", shape=[10**6, 10**6]),
        "a condition of 100 axes": lambda: _conditional(name="y", type="float32", shape=[1] * 100),
        "a condition without a name": lambda: _conditional(name="", type="float32", shape=[]),
        "a default of 1e400": lambda: _conditional(name="y", type="float32", shape=[], default=10**400),
        "samples of 10^12 numbers": lambda: _of_shape("N", 1, 10**6, 10**6),
        "samples of 10^5 channels": lambda: _of_shape("N", 10**5, 10**3, 10**3),
        "weights nowhere": lambda: _outside("nowhere.bin"),
        "weights above": lambda: _outside("../secret.bin"),
        "weights of the system": lambda: _outside("/etc/passwd"),
        "weights in a pipe": lambda: _outside("pipe"),
        "weights in a device": lambda: _outside("zero"),
        "weights in a folder": lambda: _outside("pictures"),
        "weights of a name with NUL": lambda: _outside("a\0b"),
        "weights of 3000 characters": lambda: _outside("x" * 3000),
        "weights behind the end": lambda: _outside("states.npy", 64, 10**15),
        "weights at -1": lambda: _outside("states.npy", 64, -1),
        "weights of -1 bytes": lambda: _outside("states.npy", -1, 0),
        "weights without a place": lambda: _outside(""),
    }


# A file that some command takes for good: it is not run, or a shape that it does not say is no fault of its.
_GOOD = {("sample", "size -5")} | {
    ("inspect", name)
    for name in (
        "a cycle", "opset 9999", "opset -1", "IR 9999", "a name twice", "an unknown operator", "an unknown domain",
        "a constant of 32 GiB", "a constant of 8 GiB", "a constant of 2^100 numbers", "no output", "size -5", "batch 0",
        "batch 2^40", "no inputs", "one input", "four inputs", "texts", "no type", "type 99",
        "an output of another shape",
        "weights of 10^12 numbers", "weights of -1 numbers", "samples of 10^12 numbers", "samples of 10^5 channels",
        "weights nowhere", "weights above", "weights of the system", "weights in a pipe", "weights in a device",
        "weights in a folder", "weights of a name with NUL", "weights of 3000 characters",
        "weights behind the end", "weights at -1", "weights of -1 bytes",
        "weights without a place",
    )
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Every network for the commands that read one."""
    for kind, build in _networks().items():
        for who, line in _LINES.items():
            if (who, kind) not in _GOOD:
                yield case(f"network {kind}: {who}", line, ["bad.onnx"], _save(build), 2, 3)


def _save(build: Callable[[], onnx.ModelProto]) -> Make:
    def make(folder: Path) -> None:
        os.mkfifo(folder / "pipe")
        (folder / "zero").symlink_to("/dev/zero")
        (folder / "bad.onnx").write_bytes(build().SerializeToString())

    return make
