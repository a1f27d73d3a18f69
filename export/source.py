"""The network that is exported: its graph, its process, and the float32 reference that the result is compared with."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from commands.locks import sole_writer
from commands.program import say
from commands.system import let_idle_threads_sleep
from commands.whole_files import check_room
from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process
from export.checkpoints.registry import check_foreign, is_foreign, read_foreign
from export.request import DEFAULT_CHECKPOINT, ExportRequest
from runtime.engines.checkpoint_folder import holds_network_alone, read_checkpoint_folder
from runtime.engines.gate_conditions import gate_conditions
from runtime.formats.onnx_seal import sealed
from runtime.formats.precision import FP32
from runtime.process_flags import ProcessFlags

if TYPE_CHECKING:
    import onnx

    from export.checkpoints.checkpoint import ForeignCheckpoint
    from runtime.engines.torch_checkpoint import Checkpoint
    from runtime.engines.verification import Predict
    from runtime.formats.golden import Golden

# Every engine builder takes opset 18; from 21 on GroupNorm is one node, which ONNX Runtime takes apart again.
OPSETS, DEFAULT_OPSET = range(18, 22), 18
FACTS = ("prediction_type", "schedule", "variance_type", "clip_sample")
"""What of a process is told with its origin before work starts."""

_BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Source:
    """A network to be converted.

    Attributes:
        path: where it came from.
        process: what it was trained to do.
        model: its graph, float32; without guidance where that comes last.
        sha256: of the whole graph as an ONNX file.
        predict: the float32 reference.
        reference: what computes it.
        guide: whether the process is guided and `model` is not: see `finished`.
    """

    path: Path
    process: Process
    model: onnx.ModelProto
    sha256: str
    predict: Predict
    reference: str
    guide: bool = False

    def finished(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """What `model` became, whole: guided, where the process is, now that nothing more is to be rewritten."""
        if not self.guide:
            return model
        from export.guidance import with_guidance

        return with_guidance(model, self.process)

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
        path = request.checkpoint or DEFAULT_CHECKPOINT
        if request.process != ProcessFlags() and not holds_network_alone(path):
            raise InputError(
                "process flags are for --onnx, and for a network without scheduler_config.json; a checkpoint describes "
                "its process itself; leave them out"
            )
        if is_foreign(path):
            check_foreign(path, request.checkpoint_flags, request.allow_pickle)
        elif request.checkpoint_flags:
            raise InputError(
                f"{path}: --{min(request.checkpoint_flags)} is for the file of another project, a folder describes its "
                "network itself; leave it out"
            )
        else:
            read_checkpoint_folder(path, request.process)
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
        return _from_onnx(request.onnx, request.process, request.guidance)
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
        checkpoint = load_checkpoint(path, request.allow_pickle, request.process)
        origins = read_checkpoint_folder(path, request.process).origins
    if not request.guidance:
        checkpoint = replace(checkpoint, process=checkpoint.process.without_guidance())
    process, reference = checkpoint.process, f"PyTorch {torch.__version__} (fp32, CPU)"
    say(f"{path}: {process_line(process, origins)}")
    model = _trace(checkpoint, path, opset, request.debug)
    source = Source(path, process, model, "", checkpoint.predict, reference, process.is_guided)
    content = sealed(
        source.finished(model).SerializeToString(deterministic=True), FP32.name
    )  # as export.to_onnx writes
    return replace(source, sha256=hashlib.sha256(content).hexdigest())


def _trace(checkpoint: Checkpoint | ForeignCheckpoint, path: Path, opset: int, debug: bool) -> onnx.ModelProto:
    from export.graph_facts import MAX_ONNX_BYTES
    from export.network_trace import trace_network
    from export.onnx_graph import finish_graph

    weight_bytes = 4 * checkpoint.num_parameters
    if weight_bytes > MAX_ONNX_BYTES:
        in_pytorch = "sample the folder itself with PyTorch, `python -m runtime.sample --engine FOLDER`"
        if is_foreign(path):
            in_pytorch = f"make it a folder with `python -m export.convert`, and {in_pytorch}"
        raise InputError(
            f"{path}: {weight_bytes / 1e9:.1f} GB of float32 weights, expected at most "
            f"{MAX_ONNX_BYTES / 1e9:.1f} GB, as one ONNX file can hold; {in_pytorch}"
        )
    say(f"tracing the network ({checkpoint.num_parameters:,} parameters) at opset {opset}")
    return finish_graph(trace_network(checkpoint, opset, debug), checkpoint.process)


def _from_onnx(path: Path, flags: ProcessFlags, guidance: bool) -> Source:
    from export.foreign_network import read_network
    from export.network_io import bring_ends_in_order
    from runtime.engines.onnx_file import read_onnx
    from runtime.engines.onnx_precision import LOW_PRECISIONS
    from runtime.engines.onnx_runtime import OnnxRuntimeEngine
    from runtime.engines.verification import predict_with

    file = read_onnx(path)
    precision = file.precision
    if precision != "fp32":
        way = f", or export it without --{precision}" if precision in LOW_PRECISIONS else ""
        raise InputError(
            f"{path}: computes in {precision}, expected the float32 network, against which an engine is verified; "
            f"give its checkpoint or a float32 file of it{way}"
        )
    engine = OnnxRuntimeEngine(path, flags=flags, file=file)
    if (note := engine.digest_note()) is not None:
        say(f"note: {note}")
    say(f"{path}: {process_line(engine.process, onnx_origins(flags))}")
    model, predict = read_network(path), predict_with(engine)
    bring_ends_in_order(model, engine.process.sample, flags.output_name, str(path))
    process = engine.process
    _check_batches(path, process, predict)
    if process.is_guided:
        if not guidance:
            raise InputError(
                f"{path}: guidance is part of this network already, and --no-guidance is for its checkpoint; export "
                "that with --no-guidance, or leave the flag out"
            )
        from export.guidance import without_guidance

        plain = without_guidance(model, process)  # of ours, to be rewritten as the network that it is
        if plain is not None:
            return Source(path, process, plain, engine.sha256, predict, engine.name, True)
    return Source(path, process, model, engine.sha256, predict, engine.name)


def _check_batches(path: Path, process: Process, predict: Predict) -> None:
    """Raises InputError if the network does not take what an open first axis promises."""
    failed: dict[int, InputError] = {}
    for batch in _BATCHES:
        try:
            conditions = gate_conditions(process.conditions, batch)
            predict(np.zeros((batch, *process.sample.chw), np.float32), np.zeros(batch, np.float32), *conditions)
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


def process_line(process: Process, origins: Mapping[str, str]) -> str:
    """What a network was trained to do, each of `FACTS` with its origin, in one line: a wrong assumption is seen.

    Args:
        process: of the network.
        origins: where each of `FACTS` came from.
    """
    clip = "x_start not clipped" if process.clip_sample is None else f"x_start clipped to ±{process.clip_sample:g}"
    facts = (
        f"predicts {process.prediction_type}",
        f"noise {_schedule(process.schedule)}",
        f"variance {process.variance_type}",
        clip,
    )
    places = [origins[name] for name in FACTS]
    if len(set(places)) == 1:
        return f"{', '.join(facts)} (all from {places[0]})"
    return ", ".join(f"{fact} ({place})" for fact, place in zip(facts, places, strict=True))


def onnx_origins(flags: ProcessFlags) -> dict[str, str]:
    """Of an ONNX file: the flags that were given, and for the rest its metadata."""
    given = {
        "prediction_type": flags.prediction_type and "--prediction-type",
        "schedule": flags.beta_schedule and "--beta-schedule",
        "variance_type": flags.variance_type and "--variance-type",
        "clip_sample": flags.clip_sample and "--clip-sample",
    }
    return {name: flag or "its metadata" for name, flag in given.items()}


def _schedule(schedule: NoiseSchedule) -> str:
    text = f"{schedule.kind}, T = {schedule.num_train_timesteps}"
    if schedule.beta_start is not None:
        text += f", beta {schedule.beta_start:g} to {schedule.beta_end:g}"
    return text
