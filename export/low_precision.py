"""From a float32 network to one of another precision: the time path folded, AutoCast on states of a trajectory.

What a TensorRT plan and an ONNX file in fp16 or bf16 have in common.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from commands.program import say
from commands.reasons import reason
from diffusion.errors import InputError

if TYPE_CHECKING:
    import onnx

    from export.fold_time import Folding
    from export.mixed_precision import MixedPrecision
    from runtime.formats.golden import Golden


def fold_and_report(model: onnx.ModelProto, num_train_timesteps: int, source: str) -> tuple[onnx.ModelProto, Folding]:
    """As `export.fold_time.fold_time`, and one line on what was done."""
    from export.fold_time import fold_time

    model, folding = fold_time(model, num_train_timesteps, source)
    say(
        f"time path folded: {folding.num_nodes_before} to {folding.num_nodes_after} nodes, "
        f"{folding.num_gathers} lookups in {folding.table_bytes / 1e6:.1f} MB of tables"
    )
    return model, folding


def lower_precision(
    model: onnx.ModelProto,
    precision: str,
    golden: Golden,
    source: str,
    keep_float32: Collection[str] = (),
    float32_ends: bool = False,
    debug: bool = False,
    conditions: Sequence[str] = (),
) -> MixedPrecision:
    """A network in fp16 or bf16, calibrated on the reference's states.

    Args:
        model: float32, with the names of `export.network_io`.
        precision: `fp16` or `bf16`.
        golden: of the float32 reference, for this precision.
        source: what to call the network in an error.
        keep_float32: names of further nodes that compute in float32.
        float32_ends: leave x and the prediction in float32.
        debug: let AutoCast report on standard error.
        conditions: their names in the process, in the order of the golden's.

    Raises:
        InputError: a graph that AutoCast does not take, or no room for the files that it reads.
    """
    from export import mixed_precision
    from export.graph_facts import is_standard, name_nodes, reads, subgraphs
    from export.network_io import T, X
    from export.time_path import find_time_path, label_path

    name_nodes(model)
    say(f"converting to {precision} with AutoCast")
    # What of the time path is not in tables computes in float32, and so do lookups that it reads; and so does what a
    # class label is added to, its embedding and its projections.
    path = [*find_time_path(model, X, T).path, *label_path(model, X, T)]
    left = [node for node in path if not is_standard(node, "Gather") or node.input[1] != T]
    read = {name for node in left for name in reads(node)}
    keep = [*keep_float32, *(node.name for node in path if node in left or not read.isdisjoint(node.output))]
    # AutoCast retypes what enters a loop or a branch, and not what is inside.
    control = [node for node in model.graph.node if any(True for _ in subgraphs(node))]
    keep += [node.name for node in control]
    # The first, a middle and the last state of a trajectory, one sample of each.
    rows = sorted({0, len(golden.timesteps) // 2, len(golden.timesteps) - 1})
    calibration = (golden.x[rows, 0], golden.timesteps[rows])
    fed = {entry.name for entry in model.graph.input}  # guidance comes later
    given = {name: each[rows, 0] for name, each in zip(conditions, golden.conditions, strict=True) if name in fed}
    try:
        return mixed_precision.to_mixed_precision(model, precision, calibration, keep, debug, float32_ends, given)
    except mixed_precision.AutoCastError as error:
        raise InputError(
            f"{source}: ModelOpt's AutoCast cannot convert it to {precision} ({reason(error)}); "
            f"leave out --{precision}, or export it with --opset 18"
        ) from error


def other_precision(precision: str) -> str:
    """The way out for a network that differs too much in one of the precisions that AutoCast makes."""
    return f"Give {'--bf16' if precision == 'fp16' else '--fp16'}, or neither for fp32."
