"""Group normalization (Wu & He 2018) in ONNX, either way: as one node, or by instance normalization of groups.

Opset 21 has GroupNormalization; before that PyTorch's exporter writes Reshape, InstanceNormalization over groups,
Reshape, Mul and Add. A builder has kernels for either, and which is faster depends on builder and GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from diffusion.errors import InputError
from export.network_io import tensor_shapes

GROUP, INSTANCE = "group_normalization", "instance_normalization"
FORMS = {"group": GROUP, "instance": INSTANCE}
LEAST_OPSET = 21
_MOST_OPSET = 22  # where both forms and everything that AutoCast writes is known to build


@dataclass(frozen=True)
class _Groups:
    """The nodes of one group normalization in its long form, and its facts."""

    reshape: onnx.NodeProto
    normalization: onnx.NodeProto
    back: onnx.NodeProto
    scale: onnx.NodeProto
    shift: onnx.NodeProto
    gain: np.ndarray  # [C]
    bias: np.ndarray  # [C]
    num_groups: int
    epsilon: float


def write_group_norm(model: onnx.ModelProto, form: str, source: str = "network") -> tuple[onnx.ModelProto, int]:
    """The network with every group normalization that is recognized in the form asked for.

    Args:
        model: float32; unchanged.
        form: `instance` or `group`.
        source: what to call the network in an error.

    Returns:
        A copy, or the model itself where nothing is to be done; and how many group normalizations have this form.

    Raises:
        InputError: `group` for a graph that cannot be raised to opset 21.
    """
    if form == "instance" and all(node.op_type != "GroupNormalization" for node in model.graph.node):
        return model, len(list(_long_forms(model)))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if form == "group":
        copy = _raised(copy, source)
        for groups in list(_long_forms(copy)):
            _contract(copy.graph, groups)
        _drop_unread(copy.graph)
        num = sum(node.op_type == "GroupNormalization" for node in copy.graph.node)
    else:
        for node in [node for node in copy.graph.node if node.op_type == "GroupNormalization"]:
            _expand(copy, node, source)
        num = len(list(_long_forms(copy)))
    onnx.checker.check_model(copy)
    return copy, num


def _raised(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if LEAST_OPSET <= opset <= _MOST_OPSET:
        return model
    if opset > _MOST_OPSET:
        raise InputError(f"{source}: has opset {opset}, expected at most {_MOST_OPSET}; export with --opset 18 to 21")
    # Metadata goes through; of the operations between 18 and 21 only types and defaults that nobody uses have changed.
    metadata = list(model.metadata_props)
    try:
        raised = onnx.version_converter.convert_version(model, LEAST_OPSET)
    except Exception as error:  # the converter's exceptions have no common base
        raise InputError(
            f"{source}: opset {opset} cannot be raised to {LEAST_OPSET}, which has GroupNormalization "
            f"({' '.join(str(error).split())}); leave out --group-norm group"
        ) from error
    del raised.metadata_props[:]
    raised.metadata_props.extend(metadata)
    return raised


def _long_forms(model: onnx.ModelProto) -> Iterator[_Groups]:
    """Reshape [N, G, −1] → InstanceNormalization(1, 0) → Reshape → Mul [C, 1, 1] → Add [C, 1, 1]."""
    graph, shapes = model.graph, tensor_shapes(model)
    weights = {entry.name: entry for entry in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {entry.name for entry in graph.output}

    def only_reader(node: onnx.NodeProto, op_type: str) -> onnx.NodeProto | None:
        name = node.output[0]
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and found[0].op_type == op_type and name not in outputs else None

    for normalization in graph.node:
        if normalization.op_type != "InstanceNormalization":
            continue
        reshape = maker.get(normalization.input[0])
        if reshape is None or reshape.op_type != "Reshape" or len(readers[reshape.output[0]]) != 1:
            continue
        unit, zero = (_numbers(weights, name) for name in normalization.input[1:3])
        target = _numbers(weights, reshape.input[1])
        if unit is None or zero is None or target is None or (unit != 1).any() or zero.any() or target.size != 3:
            continue
        back = only_reader(normalization, "Reshape")
        scale = only_reader(back, "Mul") if back is not None else None
        shift = only_reader(scale, "Add") if scale is not None else None
        if back is None or scale is None or shift is None:
            continue
        shape = shapes.get(reshape.input[0], ())
        gain = _per_channel(weights, scale, back.output[0], shape)
        bias = _per_channel(weights, shift, scale.output[0], shape)
        if gain is None or bias is None:
            continue
        epsilon = next((entry.f for entry in normalization.attribute if entry.name == "epsilon"), 1e-5)
        yield _Groups(reshape, normalization, back, scale, shift, gain, bias, unit.size, epsilon)


def _per_channel(
    weights: dict[str, onnx.TensorProto], node: onnx.NodeProto, other: str, shape: tuple[int, ...]
) -> np.ndarray | None:
    """The operand beside `other` as [C], if it holds one number for each channel of [N, C, …]."""
    found = _numbers(weights, next((name for name in node.input if name != other), ""))
    if found is None or len(shape) < 3 or shape[1] == 0:
        return None
    behind = (shape[1], *[1] * (len(shape) - 2))
    return found.reshape(-1) if found.shape in (behind, (1, *behind)) else None


def _numbers(weights: dict[str, onnx.TensorProto], name: str) -> np.ndarray | None:
    return numpy_helper.to_array(weights[name]) if name in weights else None


def _contract(graph: onnx.GraphProto, groups: _Groups) -> None:
    stem = groups.normalization.name or groups.normalization.output[0]
    names = [f"{stem}/gain", f"{stem}/bias"]
    for name, values in zip(names, (groups.gain, groups.bias), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    node = helper.make_node(
        "GroupNormalization",
        [groups.reshape.input[0], *names],
        [groups.shift.output[0]],
        name=f"{stem}/GroupNormalization",
        epsilon=groups.epsilon,
        num_groups=groups.num_groups,
    )
    # Behind what makes its input, before what reads its output.
    graph.node.insert(list(graph.node).index(groups.shift), node)
    for old in (groups.reshape, groups.normalization, groups.back, groups.scale, groups.shift):
        graph.node.remove(old)


def _expand(model: onnx.ModelProto, node: onnx.NodeProto, source: str) -> None:
    graph = model.graph
    weights = {entry.name: entry for entry in graph.initializer}
    gain, bias = (_numbers(weights, name) for name in node.input[1:3])
    shape = tensor_shapes(model).get(node.input[0], ())
    if gain is None or bias is None or len(shape) < 3 or 0 in shape[1:]:
        raise InputError(
            f"{source}: {node.name} (GroupNormalization) has computed weights or an open size, expected constants; "
            "give --group-norm group"
        )
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    num_groups = int(attributes["num_groups"])
    stem, per_channel = node.name or node.output[0], (-1, *[1] * (len(shape) - 2))
    added = {
        f"{stem}/groups": np.array([0, num_groups, -1]),
        f"{stem}/one": np.ones(num_groups, gain.dtype),
        f"{stem}/zero": np.zeros(num_groups, gain.dtype),
        f"{stem}/shape": np.array([0, *shape[1:]]),
        f"{stem}/gain": gain.reshape(per_channel),
        f"{stem}/bias": bias.reshape(per_channel),
    }
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in added.items())
    groups, one, zero, back, gain_name, bias_name = added
    x, y = node.input[0], node.output[0]
    epsilon = float(attributes.get("epsilon", 1e-5))
    steps: list[tuple[str, list[str], str, dict[str, float]]] = [
        ("Reshape", [x, groups], f"{y}_groups", {}),
        ("InstanceNormalization", [f"{y}_groups", one, zero], f"{y}_normalized", {"epsilon": epsilon}),
        ("Reshape", [f"{y}_normalized", back], f"{y}_back", {}),
        ("Mul", [f"{y}_back", gain_name], f"{y}_scaled", {}),
        ("Add", [f"{y}_scaled", bias_name], y, {}),
    ]
    place = list(graph.node).index(node)
    for offset, (op_type, inputs, output, more) in enumerate(steps):
        new = helper.make_node(op_type, inputs, [output], name=f"{stem}/{op_type}_{offset}", **more)
        graph.node.insert(place + offset, new)
    graph.node.remove(node)
    _drop_unread(graph)


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input} | {entry.name for entry in graph.output}
    for entry in [entry for entry in graph.initializer if entry.name not in read]:
        graph.initializer.remove(entry)
