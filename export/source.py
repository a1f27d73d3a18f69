"""The network that an engine is made from: its graph, its process, and the float32 reference that speaks for it."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from commands.idle_threads import let_idle_threads_sleep
from commands.program import say
from diffusion.errors import InputError
from diffusion.process import Process
from runtime.process_flags import ProcessFlags

if TYPE_CHECKING:
    import onnx

    from runtime.engines.verification import Predict

DEFAULT_CHECKPOINT = Path("runs/digits")
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


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """`--checkpoint` or `--onnx`."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help=f"a diffusers DDPMPipeline folder (default {DEFAULT_CHECKPOINT})",
    )
    source.add_argument("--onnx", type=Path, metavar="FILE", help="an ONNX file instead")


def read_source(
    checkpoint: Path | None,
    onnx_file: Path | None,
    flags: ProcessFlags | None = None,
    allow_pickle: bool = False,
    debug: bool = False,
) -> Source:
    """Read a checkpoint, or an ONNX file where one is given.

    Args:
        checkpoint: any diffusers `DDPMPipeline` folder, by default the one that `train.run` writes; its reference is
            PyTorch.
        onnx_file: anybody's; its reference is ONNX Runtime.
        flags: what an ONNX file does not say of its process.
        allow_pickle: read a checkpoint's weights from a pickle where there is no safetensors file.
        debug: let PyTorch's exporter report on standard error.

    Raises:
        InputError: nothing there, no ε-network, or a process nobody described.
    """
    if onnx_file is not None:
        return _from_onnx(onnx_file, flags or ProcessFlags())
    if flags is not None and flags != ProcessFlags():
        raise InputError("process flags are for --onnx, a checkpoint describes its process itself; leave them out")
    return _from_checkpoint(checkpoint or DEFAULT_CHECKPOINT, allow_pickle, debug)


def _from_checkpoint(folder: Path, allow_pickle: bool, debug: bool) -> Source:
    from runtime.engines.checkpoint_folder import read_checkpoint_folder

    read_checkpoint_folder(folder)  # a mistake there is known at once: torch takes seconds to import
    say(f"reading {folder}")
    let_idle_threads_sleep()
    import torch

    from export.network_trace import trace_network
    from export.onnx_graph import finish_graph
    from export.to_onnx import DEFAULT_OPSET, check_size
    from runtime.engines.torch_checkpoint import load_checkpoint

    checkpoint = load_checkpoint(folder, allow_pickle)
    check_size(checkpoint)
    say(f"tracing the network ({checkpoint.num_parameters:,} parameters)")
    model = finish_graph(trace_network(checkpoint, DEFAULT_OPSET, debug), checkpoint.process)
    sha256 = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return Source(
        folder, checkpoint.process, model, sha256, checkpoint.predict, f"PyTorch {torch.__version__} (fp32, CPU)"
    )


def _from_onnx(path: Path, flags: ProcessFlags) -> Source:
    from export.foreign_network import read_network
    from export.network_ends import bring_ends_in_order
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
