"""The network that is exported: its graph, its process, and the float32 reference that the result is compared with."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from commands.program import say
from commands.system import let_idle_threads_sleep
from commands.whole_files import check_room, sole_writer
from diffusion.errors import InputError
from diffusion.process import Process
from export.checkpoints.registry import check_foreign, is_foreign, read_foreign
from export.process_line import folder_origins, onnx_origins, process_line
from export.request import DEFAULT_CHECKPOINT, ExportRequest
from runtime.engines.checkpoint_folder import read_checkpoint_folder
from runtime.process_flags import ProcessFlags

if TYPE_CHECKING:
    import onnx

    from export.checkpoints.checkpoint import ForeignCheckpoint
    from runtime.engines.torch_checkpoint import Checkpoint
    from runtime.engines.verification import Predict
    from runtime.formats.golden import Golden

# Every engine builder takes opset 18; from 21 on GroupNorm is one node, which ONNX Runtime takes apart again.
OPSETS, DEFAULT_OPSET = range(18, 22), 18
_BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Source:
    """A network to be converted.

    Attributes:
        path: where it came from.
        process: what it was trained to do.
        model: its graph, float32.
        sha256: of the graph as an ONNX file.
        predict: the float32 reference.
        reference: what computes it.
    """

    path: Path
    process: Process
    model: onnx.ModelProto
    sha256: str
    predict: Predict
    reference: str

    def golden(self, precision: str) -> Golden:
        """Run the reference along its trajectories, for an engine of this precision."""
        from runtime.engines.trajectories import make_golden

        say(f"running the reference, {self.reference}")
        return make_golden(self.process, self.predict, precision)


def check_source(request: ExportRequest) -> None:
    """Find out what is known before torch is imported, which takes seconds.

    Raises:
        InputError: no such checkpoint, process flags beside one, or another project's flags beside anything else.
    """
    if request.onnx is None:
        if request.process != ProcessFlags():
            raise InputError("process flags are for --onnx, a checkpoint describes its process itself; leave them out")
        path = request.checkpoint or DEFAULT_CHECKPOINT
        if is_foreign(path):
            check_foreign(path, request.checkpoint_flags, request.allow_pickle)
        elif request.checkpoint_flags:
            raise InputError(
                f"{path}: --{min(request.checkpoint_flags)} is for the file of another project, a folder describes its "
                "network itself; leave it out"
            )
        else:
            read_checkpoint_folder(path)
    elif request.checkpoint_flags:
        raise InputError(
            f"{request.onnx}: --{min(request.checkpoint_flags)} is for the checkpoint of another project; leave it out"
        )


def read_source(request: ExportRequest, opset: int = DEFAULT_OPSET) -> Source:
    """Read a checkpoint, or an ONNX file where one is given.

    Args:
        request: which one, and how.
        opset: of the graph of a checkpoint, one of `OPSETS`.

    Raises:
        InputError: nothing there, no ε-network, or a process that is not described.
    """
    check_source(request)
    if request.onnx is not None:
        return _from_onnx(request.onnx, request.process)
    return _from_checkpoint(request, opset)


@contextlib.contextmanager
def open_source(
    request: ExportRequest, opset: int = DEFAULT_OPSET, share: float = 1.0, more_bytes: int = 0
) -> Iterator[Source]:
    """Lock the file that is to be written, and read the source of the export.

    Args:
        request: which source, and which file.
        opset: as in `read_source`.
        share: how large the file will be, as a share of the float32 graph.
        more_bytes: and what comes to that.

    Raises:
        InputError: as `read_source`; another program writes the file, or its disk has no room for it.
    """
    check_source(request)
    with sole_writer(request.out):
        source = read_source(request, opset)
        check_room(request.out, int(source.model.ByteSize() * share) + more_bytes)
        yield source


def _from_checkpoint(request: ExportRequest, opset: int) -> Source:
    path = request.checkpoint or DEFAULT_CHECKPOINT
    say(f"reading {path}")
    let_idle_threads_sleep()
    import torch

    from runtime.engines.torch_checkpoint import load_checkpoint

    checkpoint: Checkpoint | ForeignCheckpoint
    if is_foreign(path):
        checkpoint = read_foreign(path, request.checkpoint_flags, request.allow_pickle)
        origins = checkpoint.origins
        for note in checkpoint.notes:
            say(note)
    else:
        checkpoint, origins = load_checkpoint(path, request.allow_pickle), folder_origins(path)
    say(f"{path}: {process_line(checkpoint.process, origins)}")
    model = _trace(checkpoint, path, opset, request.debug)
    sha256 = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return Source(
        path, checkpoint.process, model, sha256, checkpoint.predict, f"PyTorch {torch.__version__} (fp32, CPU)"
    )


def _trace(checkpoint: Checkpoint | ForeignCheckpoint, path: Path, opset: int, debug: bool) -> onnx.ModelProto:
    from export.graph_facts import MAX_ONNX_BYTES
    from export.network_trace import trace_network
    from export.onnx_graph import finish_graph

    weight_bytes = 4 * checkpoint.num_parameters
    if weight_bytes > MAX_ONNX_BYTES:
        raise InputError(
            f"{path}: {weight_bytes / 1e9:.1f} GB of float32 weights, expected at most "
            f"{MAX_ONNX_BYTES / 1e9:.1f} GB, as one ONNX file can hold; choose a smaller network"
        )
    say(f"tracing the network ({checkpoint.num_parameters:,} parameters) at opset {opset}")
    return finish_graph(trace_network(checkpoint, opset, debug), checkpoint.process)


def _from_onnx(path: Path, flags: ProcessFlags) -> Source:
    from export.foreign_network import read_network
    from export.network_io import bring_ends_in_order
    from runtime.engines.onnx_precision import LOW_PRECISIONS, onnx_precision
    from runtime.engines.onnx_runtime import OnnxRuntimeEngine
    from runtime.engines.verification import predict_with

    precision = onnx_precision(path)
    if precision != "fp32":
        ours = f" (of ours: export it without --{precision})" if precision in LOW_PRECISIONS else ""
        raise InputError(
            f"{path}: computes in {precision}, expected the float32 network, against which an engine is verified; "
            f"give its checkpoint or a float32 file of it{ours}"
        )
    engine = OnnxRuntimeEngine(path, flags=flags)
    say(f"{path}: {process_line(engine.process, onnx_origins(flags))}")
    model, predict = read_network(path), predict_with(engine)
    bring_ends_in_order(model, engine.process.sample, flags.output_name, str(path))
    _check_batches(path, engine.process, predict)
    return Source(path, engine.process, model, engine.sha256, predict, engine.name)


def _check_batches(path: Path, process: Process, predict: Predict) -> None:
    """Raises InputError if the network does not take what an open first axis promises."""
    failed: dict[int, InputError] = {}
    for batch in _BATCHES:
        try:
            predict(np.zeros((batch, *process.sample.chw), np.float32), np.zeros(batch, np.float32))
        except InputError as error:
            failed[batch] = error
    if len(failed) == len(_BATCHES):
        raise failed[_BATCHES[0]]
    if failed:
        refused = " and ".join(map(str, failed))
        taken = " and ".join(str(batch) for batch in _BATCHES if batch not in failed)
        raise InputError(
            f"{path}: runs with a batch of {taken} but not of {refused}, expected any: a batch is fixed inside, though "
            "the first axes may be open; export it again with a dynamic batch (of PyTorch: dynamic_shapes, and no "
            f"size of a tensor turned into an int) ({failed[max(failed)]})"
        )
