"""The ends of a network in its ONNX graph: which input is x, which is t, and the prediction; names, batch and types."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from diffusion.errors import InputError
from diffusion.process import METADATA_KEY, Process, SampleShape
from export.graph_facts import all_names, free_name, infer, is_standard, reads, rename_everywhere, rename_reads
from runtime.formats.tensor_spec import TensorSpec, sample_and_timestep

X, T, PREDICTION, BATCH = "x", "t", "prediction", "N"
_SUFFIX = "_inner"


def tell_inputs_apart(
    graph: onnx.GraphProto, source: str, conditions: Collection[str] = ()
) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """x (rank 4) and t (rank 1), in any order and of any name.

    Args:
        graph: of the network.
        source: what to call it in an error.
        conditions: names of the inputs that are conditions.

    Raises:
        InputError: other inputs.
    """
    initializers = {entry.name for entry in graph.initializer}  # inputs with a default value, as old files have
    inputs = {entry.name: entry for entry in graph.input if entry.name not in (*initializers, *conditions)}
    specs = [TensorSpec(name, "", (None,) * len(e.type.tensor_type.shape.dim)) for name, e in inputs.items()]
    apart = sample_and_timestep(specs)
    if apart is None:
        found = ", ".join(f"{spec.name} (rank {len(spec.shape)})" for spec in specs) or "none"
        raise InputError(
            f"{source}: inputs are {found}; expected one of rank 4 (x [N, C, H, W]) and one of rank 1 (t [N]); "
            "export a module that takes these two and gives the network the rest itself"
        )
    x, t = apart
    return inputs[x.name], inputs[t.name]


def condition_names(model: onnx.ModelProto) -> list[str]:
    """The inputs of a network that are conditions, by the process in its metadata; none where that has none."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return [each.name for each in Process.from_json_text(entry.value, METADATA_KEY).conditions]
    return []


def with_contract_names(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """A copy whose inputs are x [N, C, H, W] and t [N] and whose output is prediction, whatever they were called.

    Raises:
        InputError: other inputs or outputs, or a batch that the file fixes.
    """
    named = onnx.ModelProto()
    named.CopyFrom(model)
    graph = named.graph
    names = condition_names(named)
    x, t = tell_inputs_apart(graph, source, names)
    if len(graph.output) != 1:
        raise InputError(
            f"{source}: has {len(graph.output)} outputs, expected one prediction; export the network without the others"
        )
    conditions = [entry for entry in graph.input if entry.name in names]
    check_open_batch((x, t, *conditions), source)
    prediction = graph.output[0]
    new_names = {x.name: X, t.name: T, prediction.name: PREDICTION}
    # A tensor inside that has one of these names already makes room, in a subgraph too.
    taken = all_names(graph) | {X, T, PREDICTION}
    for name in (X, T, PREDICTION):
        if name not in new_names and name in all_names(graph):
            new_names[name] = free_name(name + _SUFFIX, taken)
    rename_everywhere(graph, {old: new for old, new in new_names.items() if old != new})
    for entry in (x, t, prediction, *conditions):
        first = entry.type.tensor_type.shape.dim[0]
        first.Clear()
        first.dim_param = BATCH
    return named


def bring_ends_in_order(model: onnx.ModelProto, sample: SampleShape, output_name: str | None, source: str) -> None:
    """Drop other outputs, write the sample's size into x, and let a column of timesteps be fed from a vector; in place.

    Args:
        model: as `export.foreign_network.prepare` leaves it.
        sample: the shape of one sample, from the flags or the metadata.
        output_name: which output is the prediction; None where there is one.
        source: what to call the network in an error.

    Raises:
        InputError: one timestep for all samples of a batch, or a batch that the file fixes.
    """
    graph = model.graph
    for entry in list(graph.output):
        if output_name is not None and entry.name != output_name:
            graph.output.remove(entry)
    _make_vector(graph, source)
    x, t = tell_inputs_apart(graph, source, condition_names(model))
    for dim, size in zip(x.type.tensor_type.shape.dim[1:], sample.chw, strict=True):
        if not dim.HasField("dim_value"):
            dim.Clear()
            dim.dim_value = size
    one_for_all = [dim.dim_value for dim in t.type.tensor_type.shape.dim] == [1]
    if one_for_all and not x.type.tensor_type.shape.dim[0].HasField("dim_value"):
        raise InputError(_one_timestep(t.name, source))
    check_open_batch((x, t), source)


def _make_vector(graph: onnx.GraphProto, source: str) -> None:
    """t [N] for a network that takes [N, 1]."""
    times = [entry for entry in graph.input if len(entry.type.tensor_type.shape.dim) in (0, 2)]
    if len(graph.input) != 2 or len(times) != 1:
        return  # refused where the inputs are told apart
    (t,) = times
    dims = t.type.tensor_type.shape.dim
    if not dims:
        raise InputError(_one_timestep(t.name, source))
    if dims[1].dim_value != 1:
        return
    taken = all_names(graph)
    column, sizes = free_name(f"{t.name}_column", taken), free_name(f"{t.name}_sizes", taken)
    vector = t.name
    rename_everywhere(graph, {vector: column})
    t.name = vector
    del dims[1]
    graph.initializer.append(numpy_helper.from_array(np.array([-1, 1], dtype=np.int64), sizes))
    graph.node.insert(0, helper.make_node("Reshape", [vector, sizes], [column]))


def _one_timestep(name: str, source: str) -> str:
    return (
        f"{source}: input {name} is one timestep for a whole batch, expected one for each sample (t [N]), as the "
        "samples of an engine have timesteps of their own; export the network with t of shape [N], or run the file "
        "itself with `python -m runtime.sample`"
    )


def check_open_batch(inputs: Iterable[onnx.ValueInfoProto], source: str) -> None:
    """Raises InputError if the file fixes the first axis of an input."""
    for entry in inputs:
        first = entry.type.tensor_type.shape.dim[0]
        if first.HasField("dim_value"):
            raise InputError(
                f"{source}: input {entry.name} takes batches of {first.dim_value} only, expected an open first axis; "
                "export again with a dynamic batch (--batch of export.to_trt fixes it for the engine)"
            )


def fix_batch(model: onnx.ModelProto, batch_size: int) -> None:
    """Give the first axis of the inputs and the output one size, in place."""
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.shape.dim[0].Clear()
        entry.type.tensor_type.shape.dim[0].dim_value = batch_size


def set_io_type(model: onnx.ModelProto, element_type: int) -> None:
    """Let x and the prediction be of a type that the graph so far casts x to and the prediction from, in place.

    What reads x, or makes the prediction, in float32 gets a cast of its own.
    """
    graph, types, taken = model.graph, tensor_types(model), all_names(model.graph)
    x = next(entry for entry in graph.input if entry.name == X)
    narrowed = [node for node in graph.node if _is_cast(node, element_type) and node.input[0] == X]
    narrowed = [node for node in narrowed if node.output[0] != PREDICTION]
    new_names = {node.output[0]: X for node in narrowed}
    for node in narrowed:
        graph.node.remove(node)
    wide = [node for node in graph.node if X in reads(node)]
    wide_x = free_name(f"{X}_float32", taken)
    for node in wide:
        rename_reads(node, {X: wide_x})
    for node in graph.node:
        rename_reads(node, new_names)
    if wide:
        cast = helper.make_node("Cast", [X], [wide_x], name=f"{X}/Cast", to=TensorProto.FLOAT)
        graph.node.insert(0, cast)
    x.type.tensor_type.elem_type = element_type

    maker = next(node for node in graph.node if PREDICTION in node.output)
    made = {name for node in graph.node for name in node.output}
    if _is_cast(maker, TensorProto.FLOAT) and maker.input[0] in made and types.get(maker.input[0]) == element_type:
        before = maker.input[0]
        graph.node.remove(maker)
        for node in graph.node:
            for place, name in enumerate(node.output):
                if name == before:
                    node.output[place] = PREDICTION
            rename_reads(node, {before: PREDICTION})
    else:
        wide_prediction = free_name(f"{PREDICTION}_float32", taken)
        for place, name in enumerate(maker.output):
            if name == PREDICTION:
                maker.output[place] = wide_prediction
        for node in graph.node:
            rename_reads(node, {PREDICTION: wide_prediction})
        graph.node.append(
            helper.make_node("Cast", [wide_prediction], [PREDICTION], name=f"{PREDICTION}/Cast", to=element_type)
        )
    graph.output[0].type.tensor_type.elem_type = element_type


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor whose type can be inferred, by name."""
    return {entry.name: entry.type.tensor_type.elem_type for entry in infer(model)}


def _is_cast(node: onnx.NodeProto, element_type: int) -> bool:
    return is_standard(node, "Cast") and any(entry.name == "to" and entry.i == element_type for entry in node.attribute)
