"""The inputs and the output of a foreign network, put in order: x of a fixed size, t [N], one prediction."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from diffusion.errors import InputError
from diffusion.process import SampleShape
from export.graph_facts import all_names, free_name
from export.network_io import check_open_batch
from export.time_path import rename_everywhere, tell_inputs_apart


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
    x, t = tell_inputs_apart(graph, source)
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
