"""The time path folded: what a network computes from `t` alone has T different values, so an engine may look them up.

Embedding, MLP and per-block projections are evaluated once, in float32, for t = 0..T−1, and the graph gathers row t
of tables [T, …] instead. No engine computes them again, and no low precision can round t or an angle ω·t.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from commands.errors import reason
from commands.program import say
from diffusion.errors import InputError
from export.graph_facts import MAX_ONNX_BYTES, GraphFacts, all_names, free_name, name_nodes, reads, rename_reads
from export.network_io import condition_names, tell_inputs_apart
from export.time_path import Kind, TimePath, find_time_path, kinds_of, time_path_model

# A broadcast over pixels would multiply the tables by H·W: what needs more than this stays in the graph.
# The 35.7 M-parameter network of Ho et al. 2020 takes 20 MB.
MAX_TABLE_BYTES = 2**28
# Timesteps are evaluated in two orders and batch sizes; a sample may not notice its neighbours. Matrix products
# of another batch size round differently, by about 1e-7 of the largest entry.
_BATCH, _OTHER_BATCH = 256, 61
_SAME = 1e-5
_SEVERITY_FATAL = 4


@dataclass(frozen=True)
class Folding:
    """What folding did.

    Attributes:
        num_nodes_before, num_nodes_after: of the graph.
        num_gathers: lookups per network call.
        num_tables: after equal ones are shared.
        table_bytes: of all tables together.
    """

    num_nodes_before: int
    num_nodes_after: int
    num_gathers: int
    num_tables: int
    table_bytes: int

    def to_json(self) -> dict[str, int]:
        """For a report or a sidecar."""
        return asdict(self)


def fold_time(
    model: onnx.ModelProto, num_train_timesteps: int, source: str = "network"
) -> tuple[onnx.ModelProto, Folding]:
    """Replace all that depends on `t` and not on `x` by lookups.

    The cut is as late in the path as possible, so that only tensors that the rest of the graph reads become tables.
    What depends on the shape of `x` alone, such as a broadcast over the batch, counts as independent of `x`. A tensor
    becomes a table only if `kinds_of` proves that its rows are functions of each sample's own timestep.

    Args:
        model: inputs of rank 4 (x) and rank 1 (t) with an open first axis; unchanged.
        num_train_timesteps: T.
        source: what to call the network in an error.

    Returns:
        The network with `t` as int64 [N], 0..T−1, all else as it was, metadata too; and what was done.

    Raises:
        InputError: other inputs, a time path that mixes the samples of a batch or draws at random, or values in it
            that are not finite.
    """
    x, t = tell_inputs_apart(model.graph, source, condition_names(model))
    if t.type.tensor_type.shape.dim[0].HasField("dim_value"):
        size = t.type.tensor_type.shape.dim[0].dim_value
        raise InputError(f"{source}: {t.name} has {size} values, expected an open first axis; export again with one")
    facts = GraphFacts(model)
    kinds = kinds_of(model.graph, facts, x.name, t.name)

    def evaluated(keep: set[str]) -> tuple[TimePath, dict[str, np.ndarray]]:
        while True:
            path = find_time_path(model, x.name, t.name, frozenset(keep), facts)
            evaluate = _Evaluation(model, path, x, t, source)
            sizes = {name: array.nbytes for name, array in evaluate(np.zeros(1, np.int64)).items()}
            if num_train_timesteps * sum(sizes.values()) <= MAX_TABLE_BYTES:
                return path, _evaluate_all(evaluate, num_train_timesteps, source)
            keep.add(max(sizes, key=lambda name: sizes[name]))

    path, tables = evaluated(set())
    if any(kinds[name] is not Kind.ROWS for name in path.boundary):
        # The numbers did not show that samples mix. That is no proof, so what has none stays in the graph.
        path, tables = evaluated({name for name, kind in kinds.items() if kind is not Kind.ROWS})
    num_bytes = sum(entry.ByteSize() for entry in model.graph.initializer) + sum(
        table.nbytes for table in tables.values()
    )
    if num_bytes > MAX_ONNX_BYTES:
        raise InputError(
            f"{source}: {num_bytes / 1e9:.1f} GB of weights and tables, expected at most "
            f"{MAX_ONNX_BYTES / 1e9:.1f} GB, as much as one ONNX message holds; give --no-fold-time"
        )
    folded = _with_lookups(model, path, tables, t.name)
    name_nodes(folded)
    onnx.checker.check_model(folded)
    kept = {hashlib.sha256(_content(table)).digest(): table.nbytes for table in tables.values()}
    num_gathers = len(folded.graph.node) - len(path.rest)
    folding = Folding(len(model.graph.node), len(folded.graph.node), num_gathers, len(kept), sum(kept.values()))
    say(
        f"time path folded: {folding.num_nodes_before} to {folding.num_nodes_after} nodes, "
        f"{folding.num_gathers} lookups in {folding.table_bytes / 1e6:.1f} MB of tables"
    )
    return folded, folding


class _Evaluation:
    """The time path in ONNX Runtime: int64 [n] timesteps → the boundary's tensors, each [n, …]."""

    def __init__(
        self, model: onnx.ModelProto, path: TimePath, x: onnx.ValueInfoProto, t: onnx.ValueInfoProto, source: str
    ) -> None:
        self._t_name, self._source = t.name, source
        self._t_dtype = helper.tensor_dtype_to_np_dtype(t.type.tensor_type.elem_type)
        self._boundary = path.boundary
        self._computed = [name for name in path.boundary if name != t.name]
        self._session: ort.InferenceSession | None = None
        self._x: tuple[str, list[int], np.dtype] | None = None
        if not self._computed:
            return
        options = ort.SessionOptions()
        options.log_severity_level = _SEVERITY_FATAL
        content = time_path_model(model, path, t.name).SerializeToString()
        try:
            self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise InputError(
                f"{source}: ONNX Runtime cannot run what depends on {t.name} by itself ({reason(error)}); "
                "give --no-fold-time"
            ) from error
        if x.name in [entry.name for entry in self._session.get_inputs()]:
            chw = [dim.dim_value for dim in x.type.tensor_type.shape.dim[1:]]
            if not all(chw):
                raise InputError(f"{source}: {x.name} has open channels, height or width, expected fixed ones")
            self._x = (x.name, chw, helper.tensor_dtype_to_np_dtype(x.type.tensor_type.elem_type))

    def __call__(self, timesteps: np.ndarray) -> dict[str, np.ndarray]:
        t = timesteps.astype(self._t_dtype)
        found = {self._t_name: t}
        if self._session is not None:
            feed = {self._t_name: t}
            if self._x is not None:  # of which only the shape is read
                name, chw, dtype = self._x
                feed[name] = np.zeros((len(t), *chw), dtype)
            try:
                values = self._session.run(self._computed, feed)
            except Exception as error:  # as above
                raise InputError(
                    f"{self._source}: what depends on {self._t_name} fails for {len(t)} timesteps from "
                    f"{timesteps.min()} to {timesteps.max()} ({reason(error)}); check --num-train-timesteps, "
                    "or give --no-fold-time"
                ) from error
            found.update(zip(self._computed, values, strict=True))
        for name in self._boundary:
            if found[name].shape[:1] != t.shape:
                raise InputError(
                    f"{self._source}: {name} depends on {self._t_name} alone and has shape {found[name].shape} for "
                    f"{len(t)} timesteps, expected one row for each; give --no-fold-time"
                )
        return {name: found[name] for name in self._boundary}


def _evaluate_all(evaluate: _Evaluation, num_train_timesteps: int, source: str) -> dict[str, np.ndarray]:
    """Every boundary tensor for t = 0..T−1, [T, …]."""
    timesteps = np.arange(num_train_timesteps)
    tables = _in_batches(evaluate, timesteps, _BATCH)
    order = np.random.default_rng(0).permutation(timesteps)
    # Smaller than T, else both orders would make one batch of the same neighbours.
    others = _in_batches(evaluate, order, min(_OTHER_BATCH, max(1, num_train_timesteps // 2)))
    for name, table in tables.items():
        if not np.isfinite(table).all():
            worst = int(np.argwhere(~np.isfinite(table))[0][0])
            raise InputError(f"{source}: {name} is not finite at timestep {worst}, expected numbers; export again")
        difference = np.abs(others[name].astype(np.float64) - table[order])
        if difference.max(initial=0.0) > _SAME * np.abs(table.astype(np.float64)).max(initial=0.0):
            raise InputError(
                f"{source}: {name} changes by up to {difference.max():.2g} with the other timesteps of a batch, "
                "expected a function of each sample's own; give --no-fold-time"
            )
    return tables


def _in_batches(evaluate: _Evaluation, timesteps: np.ndarray, size: int) -> dict[str, np.ndarray]:
    parts = [evaluate(timesteps[first : first + size]) for first in range(0, len(timesteps), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _with_lookups(
    model: onnx.ModelProto, path: TimePath, tables: Mapping[str, np.ndarray], t_name: str
) -> onnx.ModelProto:
    graph = onnx.GraphProto(name=model.graph.name, doc_string=model.graph.doc_string)
    outputs = {entry.name for entry in model.graph.output}
    taken = all_names(model.graph)
    first_with: dict[bytes, tuple[str, str]] = {}  # hash → names of table and of what is looked up
    new_names: dict[str, str] = {}
    for name, table in tables.items():
        digest = hashlib.sha256(_content(table)).digest()
        if digest not in first_with:
            table_name = free_name("time_table", taken)
            graph.initializer.append(numpy_helper.from_array(table, table_name))
        elif name not in outputs:
            new_names[name] = first_with[digest][1]
            continue
        else:
            table_name = first_with[digest][0]
        looked_up = name if name != t_name else free_name(f"{t_name}_value", taken)
        new_names[name] = looked_up
        first_with.setdefault(digest, (table_name, looked_up))
        node = helper.make_node("Gather", [table_name, t_name], [looked_up], name=f"{table_name}/Gather", axis=0)
        graph.node.append(node)
    for node in path.rest:
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        rename_reads(kept, new_names)
        graph.node.append(kept)
    _copy_what_is_read(model.graph, graph, t_name)
    folded = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _copy_field(folded, field.name, value)
    folded.graph.CopyFrom(graph)
    return folded


def _copy_what_is_read(source: onnx.GraphProto, graph: onnx.GraphProto, t_name: str) -> None:
    """Inputs, outputs, weights and known shapes, of those tensors that are left."""
    read = {name for node in graph.node for name in reads(node)}
    computed = {name for node in graph.node for name in node.output}
    given = {entry.name for entry in source.initializer}
    graph.initializer.extend(entry for entry in source.initializer if entry.name in read)
    graph.sparse_initializer.extend(entry for entry in source.sparse_initializer if entry.values.name in read)
    graph.input.extend(entry for entry in source.input if entry.name in read or entry.name not in given)
    graph.output.extend(source.output)
    graph.value_info.extend(entry for entry in source.value_info if entry.name in computed)
    graph.metadata_props.extend(source.metadata_props)
    for entry in graph.input:
        if entry.name == t_name:
            entry.type.tensor_type.elem_type = TensorProto.INT64


def _copy_field(message: onnx.ModelProto, name: str, value: object) -> None:
    if isinstance(value, str | int):
        setattr(message, name, value)
    elif isinstance(value, Sequence):
        getattr(message, name).extend(value)
    else:
        getattr(message, name).CopyFrom(value)


def _content(table: np.ndarray) -> bytes:
    return f"{table.dtype}{table.shape}".encode() + np.ascontiguousarray(table).tobytes()
