"""Group normalization (Wu & He 2018) in ONNX, in the form that a builder or provider has kernels for.

Opset 21 has GroupNormalization; before that PyTorch's exporter writes Reshape, InstanceNormalization over groups,
Reshape, Mul and Add. A builder has kernels for either, and which is faster depends on builder and GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from commands.errors import reason
from diffusion.errors import InputError
from export.graph_facts import (
    OPEN,
    GraphFacts,
    Shape,
    all_names,
    drop_unread,
    free_name,
    is_standard,
    name_nodes,
    opset_of,
)

GROUP, INSTANCE = "group_normalization", "instance_normalization"
FORMS = {"group": GROUP, "instance": INSTANCE}
MIN_OPSET = 21
_MAX_OPSET = 22  # where both forms and everything that AutoCast writes is known to build


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
    if form == "instance" and not any(is_standard(node, "GroupNormalization") for node in model.graph.node):
        return model, len(list(_long_forms(model)))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if form == "group":
        copy = _raised(copy, source)
        for groups in list(_long_forms(copy)):
            _contract(copy.graph, groups)
        drop_unread(copy.graph)
        num = sum(is_standard(node, "GroupNormalization") for node in copy.graph.node)
    else:
        for node in [node for node in copy.graph.node if is_standard(node, "GroupNormalization")]:
            _expand(copy, node, source)
        num = len(list(_long_forms(copy)))
    name_nodes(copy)
    onnx.checker.check_model(copy)
    return copy, num


def _raised(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    opset = opset_of(model)
    if MIN_OPSET <= opset <= _MAX_OPSET:
        return model
    if opset > _MAX_OPSET:
        raise InputError(f"{source}: has opset {opset}, expected at most {_MAX_OPSET}; export with --opset 18 to 21")
    # Metadata goes through; of the operations between 18 and 21 only unused types and defaults have changed.
    metadata = list(model.metadata_props)
    try:
        raised = onnx.version_converter.convert_version(model, MIN_OPSET)
    except Exception as error:  # the converter's exceptions have no common base
        raise InputError(
            f"{source}: opset {opset} cannot be raised to {MIN_OPSET}, which has GroupNormalization "
            f"({reason(error)}); leave out --group-norm group"
        ) from error
    del raised.metadata_props[:]
    raised.metadata_props.extend(metadata)
    return raised


def _long_forms(model: onnx.ModelProto) -> Iterator[_Groups]:
    """Reshape [N, G, −1] → InstanceNormalization(1, 0) → Reshape → Mul [C, 1, 1] → Add [C, 1, 1]."""
    facts = GraphFacts(model)
    for normalization in model.graph.node:
        if not is_standard(normalization, "InstanceNormalization"):
            continue
        reshape = facts.maker.get(normalization.input[0])
        if reshape is None or facts.only_reader(normalization.input[0], "InstanceNormalization") is None:
            continue
        unit, zero = (facts.numbers(name) for name in normalization.input[1:3])
        if unit is None or zero is None or (unit != 1).any() or zero.any():
            continue
        back = facts.only_reader(normalization.output[0], "Reshape")
        scale = facts.only_reader(back.output[0], "Mul") if back is not None else None
        shift = facts.only_reader(scale.output[0], "Add") if scale is not None else None
        if back is None or scale is None or shift is None or not _in_groups(facts, reshape, back, unit.size):
            continue
        shape = facts.shapes[reshape.input[0]]
        gain = _per_channel(facts, scale, back.output[0], shape)
        bias = _per_channel(facts, shift, scale.output[0], shape)
        if gain is None or bias is None:
            continue
        epsilon = next((entry.f for entry in normalization.attribute if entry.name == "epsilon"), 1e-5)
        yield _Groups(reshape, normalization, back, scale, shift, gain, bias, unit.size, epsilon)


def _in_groups(facts: GraphFacts, reshape: onnx.NodeProto, back: onnx.NodeProto, num_groups: int) -> bool:
    """Whether [N, C, …] becomes [N, G, C/G·…], and what it was again: then nothing has moved from sample to sample."""
    shape = facts.shapes.get(reshape.input[0], ())
    sizes = [size for size in shape[1:] if isinstance(size, int) and size > 0]
    if not is_standard(reshape, "Reshape") or len(shape) < 3 or len(sizes) != len(shape) - 1 or shape[0] == OPEN:
        return False
    groups = (shape[0], num_groups, math.prod(sizes) // num_groups)
    return (
        sizes[0] % num_groups == 0
        and facts.shapes.get(reshape.output[0]) == groups
        and facts.shapes.get(back.output[0]) == shape
    )


def _per_channel(facts: GraphFacts, node: onnx.NodeProto, other: str, shape: Shape) -> np.ndarray | None:
    """The operand beside `other` as [C], if it holds one number for each channel of [N, C, …]."""
    found = facts.numbers(next((name for name in node.input if name != other), ""))
    behind = (shape[1], *[1] * (len(shape) - 2))
    return found.reshape(-1) if found is not None and found.shape in (behind, (1, *behind)) else None


def _contract(graph: onnx.GraphProto, groups: _Groups) -> None:
    stem, taken = groups.normalization.name or groups.normalization.output[0], all_names(graph)
    names = [free_name(f"{stem}/{kind}", taken) for kind in ("gain", "bias")]
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
    graph, facts = model.graph, GraphFacts(model)
    gain, bias = (facts.numbers(name) for name in node.input[1:3])
    shape = facts.shapes.get(node.input[0], ())
    sizes = [size for size in shape[1:] if isinstance(size, int) and size > 0]
    if gain is None or bias is None or len(shape) < 3 or len(sizes) != len(shape) - 1:
        raise InputError(
            f"{source}: {node.name or node.output[0]} (GroupNormalization) has computed weights or an open size, "
            "expected constants; give --group-norm group"
        )
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    num_groups = int(attributes["num_groups"])
    if facts.opset < MIN_OPSET:  # there they are by group, not by channel
        gain, bias = (np.repeat(values, sizes[0] // num_groups) for values in (gain, bias))
    stem, per_channel = node.name or node.output[0], (-1, *[1] * (len(shape) - 2))
    x, y = node.input[0], node.output[0]
    added = {
        "groups": np.array([0, num_groups, -1]),
        "one": np.ones(num_groups, gain.dtype),
        "zero": np.zeros(num_groups, gain.dtype),
        "shape": np.array([0, *sizes]),
        "gain": gain.reshape(per_channel),
        "bias": bias.reshape(per_channel),
    }
    names = {kind: facts.free_name(f"{stem}/{kind}") for kind in added}
    graph.initializer.extend(numpy_helper.from_array(values, names[kind]) for kind, values in added.items())
    grouped, normalized, back, scaled = (
        facts.free_name(f"{y}_{kind}") for kind in ("groups", "normalized", "back", "scaled")
    )
    epsilon = float(attributes.get("epsilon", 1e-5))
    steps: list[tuple[str, list[str], str, dict[str, float]]] = [
        ("Reshape", [x, names["groups"]], grouped, {}),
        ("InstanceNormalization", [grouped, names["one"], names["zero"]], normalized, {"epsilon": epsilon}),
        ("Reshape", [normalized, names["shape"]], back, {}),
        ("Mul", [back, names["gain"]], scaled, {}),
        ("Add", [scaled, names["bias"]], y, {}),
    ]
    place = list(graph.node).index(node)
    for offset, (op_type, inputs, output, more) in enumerate(steps):
        new = helper.make_node(op_type, inputs, [output], name=f"{stem}/{op_type}_{offset}", **more)
        graph.node.insert(place + offset, new)
    graph.node.remove(node)
    drop_unread(graph)


def in_cuda_bf16_form(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A network in the operators for which ONNX Runtime's CUDA provider has bf16 kernels.

    By its list of kernels (docs/OperatorKernels.md of ONNX Runtime) that provider has none for InstanceNormalization in
    bf16, nor in any type in the version of opset 22, which bf16 convolutions need; the session is then refused. It has
    one for LayerNormalization, which does the same to the last axis of [N, groups, elements]. Resize has no bf16 kernel
    either; it moves pixels, so that computing it in float32 changes no number.

    Args:
        model: float32, opset 17 or later; unchanged.

    Returns:
        A copy, its nodes named, and the names of those that have no bf16 kernel.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name_nodes(copy)
    facts = GraphFacts(copy)
    ones: dict[int, str] = {}
    for place, node in enumerate(copy.graph.node):
        if is_standard(node, "InstanceNormalization"):
            shape = facts.shapes.get(node.input[0], ())
            unit, zero = (facts.numbers(name) for name in node.input[1:3])
            if len(shape) == 3 and isinstance(shape[2], int) and shape[2] and _all(unit, 1) and _all(zero, 0):
                if shape[2] not in ones:
                    name = ones[shape[2]] = facts.free_name(f"ones_{shape[2]}")
                    copy.graph.initializer.append(numpy_helper.from_array(np.ones(shape[2], np.float32), name))
                copy.graph.node[place].CopyFrom(_layer_norm(node, ones[shape[2]]))
    drop_unread(copy.graph)
    onnx.checker.check_model(copy)
    no_kernel = ("InstanceNormalization", "Resize")
    return copy, tuple(node.name for node in copy.graph.node if is_standard(node, *no_kernel))


def _layer_norm(node: onnx.NodeProto, gain: str) -> onnx.NodeProto:
    epsilon = next((entry.f for entry in node.attribute if entry.name == "epsilon"), 1e-5)
    name = node.name.replace("InstanceNormalization", "LayerNormalization")
    return helper.make_node("LayerNormalization", [node.input[0], gain], node.output, name, axis=-1, epsilon=epsilon)


def _all(values: np.ndarray | None, number: float) -> bool:
    return values is not None and bool((values == number).all())
