"""A PyTorch module as the graph of an ONNX file: traced, every shape fixed but the batch, the process in its metadata.

The same checkpoint gives the same bytes: no path, date or trace of the source is left in the file.
"""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import optimizer

from diffusion.conditions import Condition
from diffusion.process import METADATA_KEY, Process
from export.network_io import BATCH, PREDICTION, T, X

PRODUCER = "ddpm-rt"
# A batch of 1 would be taken for a constant.
_TRACED_BATCH = 2
_SCOPES = "pkg.torch.onnx.name_scopes"
_DESCRIPTION = (
    "Network of a denoising diffusion model. x: noisy samples [N, C, H, W]; t: timesteps [N], 0..T-1; "
    "prediction: [N, C or 2C, H, W]. The metadata property 'ddpm-rt' describes the process as JSON."
)


def trace_module(
    module: torch.nn.Module,
    chw: tuple[int, int, int],
    opset: int,
    debug: bool = False,
    conditions: Sequence[Condition] = (),
) -> ir.Model:
    """Trace a module with inputs `x` [N, C, H, W] and `t` [N], output `prediction` and an open first axis.

    Args:
        module: takes x and t, both float32, and the conditions.
        chw: of x.
        opset: of the ONNX standard.
        debug: let PyTorch's exporter say on standard error what it does.
        conditions: further inputs, of their names.

    Returns:
        The graph, optimized by onnxscript, its weights shared with the module.
    """
    x, t = torch.zeros(_TRACED_BATCH, *chw), torch.zeros(_TRACED_BATCH)
    more = tuple(torch.zeros(_TRACED_BATCH, *each.shape, dtype=getattr(torch, each.type)) for each in conditions)
    batch = {0: BATCH}
    with _quiet(debug), torch.no_grad():
        program = torch.onnx.export(
            module,
            (x, t, *more),
            dynamo=True,
            opset_version=opset,
            input_names=[X, T, *(each.name for each in conditions)],
            output_names=[PREDICTION],
            dynamic_shapes=(batch, batch, (batch,) * len(more)) if more else (batch, batch),
            optimize=True,
            verbose=debug,
        )
    model: ir.Model = program.model
    return model


@contextlib.contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Keep the exporter off standard output, which is for results, and silence it unless asked to speak."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")  # of torch about its own parts
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def finish_graph(model: ir.Model, process: Process) -> onnx.ModelProto:
    """Clean up a traced network and describe it.

    Args:
        model: as traced, changed in place.
        process: written to the metadata property `ddpm-rt`.

    Raises:
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: a bug in what is above.
    """
    _drop_multiplications_by_one(model.graph)
    _fix_reshapes(model.graph)
    optimizer.optimize(model, num_iterations=2, onnx_shape_inference=True)
    _name_batch_axis(model.graph)
    _name_nodes(model.graph)
    clean_up = ir.passes.Sequential(
        passes.CommonSubexpressionEliminationPass(),
        passes.DeduplicateInitializersPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
    )
    clean_up(model)
    _forget_trace(model.graph)
    model.metadata_props.clear()
    model.metadata_props[METADATA_KEY] = json.dumps(process.to_json(), sort_keys=True)
    model.producer_name, model.producer_version = PRODUCER, None
    model.doc_string = _DESCRIPTION
    model.graph.name = "prediction_network"
    proto = ir.to_proto(model)
    # Every shape must follow from the inputs' alone; what is inferred is not kept, as any tool can do it again.
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def count_ops(proto: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each kind the graph has, by name."""
    counts: dict[str, int] = {}
    for node in proto.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))


def _fix_reshapes(graph: ir.Graph) -> None:
    """Replace computed target shapes by constants where only the batch is open.

    PyTorch's exporter restores a shape after GroupNorm by reading it off a tensor; every such chain of
    Shape, Slice and Concat is a host-side computation in the middle of a device's work.
    """
    for node in graph:
        if node.op_type != "Reshape":
            continue
        computed_by = _input(node, 1).producer()
        if computed_by is None or (target := _shape_read_by(computed_by) or node.outputs[0].shape) is None:
            continue
        fixed = [size if isinstance(size, int) else -1 for size in target]
        if fixed.count(-1) <= 1:
            node.replace_input_with(1, _constant(graph, fixed))


def _shape_read_by(node: ir.Node) -> ir.Shape | None:
    """What a Shape node gives, if it is one and its input's shape is known."""
    if node.op_type != "Shape" or (shape := _input(node, 0).shape) is None:
        return None
    return ir.Shape(shape[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)])


def _name_batch_axis(graph: ir.Graph) -> None:
    """Say "as the input's" (0) of a first axis instead of "what is left" (−1), so that N stays N."""
    for node in graph:
        if node.op_type != "Reshape" or (shape := _input(node, 0).shape) is None:
            continue
        target = ir.convenience.get_const_tensor(_input(node, 1))
        rest = [size for size in shape[1:] if isinstance(size, int)]
        if target is None or len(rest) != len(shape) - 1:
            continue
        first, *sizes = target.numpy().tolist()
        if first == -1 and math.prod(sizes) == math.prod(rest):
            node.replace_input_with(1, _constant(graph, [0, *sizes]))
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _drop_multiplications_by_one(graph: ir.Graph) -> None:
    """Remove t · ones(N), by which diffusers broadcasts a single timestep over a batch."""
    for node in list(graph):
        if node.op_type != "Mul":
            continue
        for one, other in ((0, 1), (1, 0)):
            kept, product = _input(node, other), node.outputs[0]
            if _is_expanded_one(_input(node, one)) and kept.shape is not None and kept.shape == product.shape:
                ir.convenience.replace_all_uses_with(product, kept)
                graph.remove(node, safe=True)
                break


def _is_expanded_one(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.op_type != "Expand":
        return False
    filling = ir.convenience.get_const_tensor(_input(node, 0))
    return filling is not None and bool((filling.numpy() == 1).all())


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"node {node.name} ({node.op_type}) has no input {index}")
    return value


def _name_nodes(graph: ir.Graph) -> None:
    """Name every node by the module it comes from: profilers and error messages show these names."""
    used: dict[str, int] = {}
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))  # outermost to innermost, then the op
        name = f"{scopes[-2]}/{node.op_type}" if len(scopes) > 1 and scopes[-2] else node.op_type
        used[name] = used.get(name, 0) + 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"


def _forget_trace(graph: ir.Graph) -> None:
    """Drop what the exporter notes on values, shapes of the traced batch among it."""
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
        value.metadata_props.clear()
    for node in graph:
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape, value.type = None, None


def _constant(graph: ir.Graph, numbers: list[int]) -> ir.Value:
    name = "shape_" + "_".join(map(str, numbers))
    if name not in graph.initializers:
        tensor = ir.tensor(numbers, dtype=ir.DataType.INT64, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape([len(numbers)]), type=ir.TensorType(ir.DataType.INT64), const_value=tensor
        )
        graph.register_initializer(value)
    return graph.initializers[name]
