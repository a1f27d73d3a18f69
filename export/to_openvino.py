"""`python -m export.to_openvino`: a checkpoint or an ONNX file to an OpenVINO engine, verified, then published."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from commands.errors import DeviceUnavailableError, VerificationError
from commands.output_lock import check_room, sole_writer
from commands.program import Report, make_parser, run_program, say
from commands.reasons import reason
from diffusion.errors import InputError
from export.engine_files import check_out
from export.source import Source, add_source_flags, read_source
from runtime.formats.openvino_description import OpenVinoDescription
from runtime.formats.precision import FLOAT32, INT64
from runtime.formats.sidecar import Sidecar, golden_path
from runtime.formats.tensor_spec import NetworkTensors, TensorSpec
from runtime.formats.verification_record import VerificationRecord
from runtime.process_flags import ProcessFlags, add_process_flags, process_flags

if TYPE_CHECKING:
    import onnx

    from export.fold_time import Folding
    from export.openvino_graph import Rewriting
    from runtime.engines.verification import EngineVerification

DEFAULT_OUT = Path("unet.xml")


def export_openvino(
    out: Path = DEFAULT_OUT,
    checkpoint: Path | None = None,
    onnx_file: Path | None = None,
    bf16: bool = False,
    fold: bool = True,
    flags: ProcessFlags | None = None,
    allow_pickle: bool = False,
    debug: bool = False,
) -> Report:
    """Convert, verify and publish `out`, its `.bin`, its reference predictions and, last, its sidecar.

    Until the sidecar is there its hashes do not fit, so a reader sees a whole engine or none.

    Args:
        out: the file to write, `….xml`.
        checkpoint: any diffusers `DDPMPipeline` folder; its reference is PyTorch.
        onnx_file: instead of a checkpoint; its reference is ONNX Runtime.
        bf16: compute in bfloat16 instead of float32.
        fold: replace the time path by tables.
        flags: what an ONNX file does not say of its process.
        allow_pickle: read a checkpoint's weights from a pickle where there is no safetensors file.
        debug: let PyTorch's exporter report on standard error.

    Returns:
        The report: files, what was folded, and the verification.

    Raises:
        InputError: a source that cannot be used, or files that cannot be written.
        DeviceUnavailableError: OpenVINO is not installed, or this CPU has no bf16, so nothing could be verified.
        VerificationError: the engine differs from its reference; nothing was written.
    """
    check_out(out, ".xml")
    precision = "bf16" if bf16 else "fp32"
    _check_device(precision)
    with sole_writer(out):
        source = read_source(checkpoint, onnx_file, flags, allow_pickle, debug)
        sidecar, size_bytes, verification = _published(out, source, precision, fold)
    limits = f"tolerance {verification.tolerance:g}"
    return {
        "summary": (
            f"{out}: {precision}, {size_bytes / 1e6:.1f} MB; predictions at most {verification.worst:.1e} from "
            f"{source.reference} (median {verification.median:.1e}, {len(verification.errors)} timesteps), x_0 after "
            f"{verification.chain_steps} steps {verification.chain_error:.1e} ({limits})\n"
            f"next: python -m runtime.sample --engine {out}"
        ),
        "xml": str(out),
        "source": str(source.path),
        "size_bytes": size_bytes,
        **sidecar.to_json(),
    }


def _published(
    out: Path, source: Source, precision: str, fold: bool
) -> tuple[Sidecar[OpenVinoDescription], int, EngineVerification]:
    """Convert, verify and publish; the sidecar, the size of network and constants, and the verification."""
    from export.engine_files import publish_engine

    model, folding = source.model, None
    check_room(out, model.ByteSize())
    if fold:
        from export.low_precision import fold_and_report

        model, folding = fold_and_report(model, source.process.schedule.num_train_timesteps, str(source.path))
    network, weights, rewriting = _convert(model, str(source.path))
    sidecar, golden, verification = _verified(source, folding, rewriting, precision, network, weights, out)
    check_room(out, len(network) + len(weights) + len(golden))
    publish_engine({out.with_suffix(".bin"): weights, golden_path(out): golden, out: network}, out, sidecar)
    return sidecar, len(network) + len(weights), verification


def _check_device(precision: str) -> None:
    try:
        import openvino

        from runtime.engines.openvino_cpu import check_precision
    except ModuleNotFoundError as error:
        raise DeviceUnavailableError(
            f'needs OpenVINO, and the module {error.name!r} is not installed; pip install "ddpm-rt[cpu,export]"'
        ) from error
    check_precision(openvino.Core(), precision, "--bf16 (an engine is verified where it is built)")


def _convert(model: onnx.ModelProto, source: str) -> tuple[bytes, bytes, Rewriting]:
    """OpenVINO's representation: the network as XML, and its constants, float32 as they are.

    Raises:
        InputError: OpenVINO does not know an operator, or a form of it.
    """
    import onnx
    import openvino

    from export.openvino_graph import rewrite_for_openvino
    from export.time_path import tell_inputs_apart

    say(f"converting with OpenVINO {openvino.__version__}")
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    rewriting = rewrite_for_openvino(rewritten, tell_inputs_apart(model.graph, "network")[1].name)
    try:
        converted = openvino.Core().read_model(rewritten.SerializeToString())
    except RuntimeError as error:
        raise InputError(
            f"{source}: OpenVINO {openvino.__version__.partition('-')[0]} cannot convert it ({reason(error)}); export "
            "the network with standard operators of opset 18, or run the file itself with `python -m runtime.sample "
            "--backend onnxruntime`"
        ) from error
    if len(converted.inputs) != 2:
        raise InputError(
            f"{source}: the prediction is made from {' and '.join(entry.get_any_name() for entry in converted.inputs)} "
            "alone, expected one that depends on the noisy sample and on the timestep; export the whole network"
        )
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "unet.xml"
        openvino.serialize(converted, str(xml))
        return xml.read_bytes(), xml.with_suffix(".bin").read_bytes(), rewriting


def _verified(
    source: Source,
    folding: Folding | None,
    rewriting: Rewriting,
    precision: str,
    network: bytes,
    weights: bytes,
    out: Path,
) -> tuple[Sidecar[OpenVinoDescription], bytes, EngineVerification]:
    """Run the very files that will be published, and describe them."""
    import openvino

    from runtime.engines.openvino_cpu import OpenVinoEngine, place_here
    from runtime.engines.trajectories import make_golden
    from runtime.engines.verification import predict_with, verify_engine

    say(f"running the reference, {source.reference}")
    golden = make_golden(source.process, source.predict, precision)
    content = golden.to_bytes()
    num_channels = source.process.prediction_channels
    sample = source.process.sample
    sidecar = Sidecar(
        sha256=hashlib.sha256(network).hexdigest(),
        process=source.process,
        engine=OpenVinoDescription(
            builder=f"OpenVINO {openvino.__version__}",
            precision=precision,
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            verified_on=place_here(),
            tensors=NetworkTensors(
                TensorSpec("x", FLOAT32.name, ("N", *sample.chw)),
                TensorSpec("t", FLOAT32.name if folding is None else INT64.name, ("N",)),
                TensorSpec("prediction", FLOAT32.name, ("N", num_channels, sample.height, sample.width)),
            ),
            time_path={"folded": False} if folding is None else {"folded": True, **folding.to_json()},
            rewritten=asdict(rewriting),
            onnx_sha256=source.sha256,
        ),
        verification=VerificationRecord(passed=False),
        golden_sha256=hashlib.sha256(content).hexdigest(),
    )
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / out.name
        xml.write_bytes(network)
        xml.with_suffix(".bin").write_bytes(weights)
        engine = OpenVinoEngine(xml, sidecar=sidecar)
        say(f"verifying {engine.name}")
        ran_on = f"{engine.name}, {place_here()}"
        verification = verify_engine(golden, source.process, predict_with(engine), precision, source.reference, ran_on)
    if not verification.passed:
        raise VerificationError(
            f"{out}: {precision} differs from {source.reference} by up to {verification.worst:.3g}, allowed at each "
            f"timestep is what the table says; nothing was published. {_way_out(precision, folding)}\n"
            f"{verification.table()}"
        )
    return replace(sidecar, verification=verification.record()), content, verification


def _way_out(precision: str, folding: Folding | None) -> str:
    if precision == "fp32":
        return "This is a defect: please report it."
    if folding is None:
        return "Leave out --no-fold-time, which lets bf16 round t and what is computed from it."
    return "Leave out --bf16."


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(
        "export.to_openvino",
        "Convert a checkpoint or an ONNX file to an OpenVINO engine for the CPU, and verify it against float32.",
        "The time path is evaluated once, in float32, and looked up from tables. Nothing is published that fails.",
    )
    add_source_flags(parser)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, on CPUs that have it")
    parser.add_argument(
        "--no-fold-time", dest="fold", action="store_false", help="let the engine compute the time path at every step"
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="FILE", help=f"the file to write (default {DEFAULT_OUT})"
    )
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read weights from a .bin where there is no safetensors file"
    )
    add_process_flags(parser)

    def run(args: argparse.Namespace) -> Report:
        flags = process_flags(args)
        return export_openvino(
            args.out, args.checkpoint, args.onnx, args.bf16, args.fold, flags, args.allow_pickle, args.debug
        )

    return run_program(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
