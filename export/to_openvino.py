"""`python -m export.to_openvino`: a checkpoint or an ONNX file to an OpenVINO engine, verified, then published."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from commands.errors import DeviceUnavailableError, reason
from commands.program import Report, make_parser, run_program, say
from commands.whole_files import work_folder
from diffusion.errors import InputError
from export.publication import Exported, accuracy, check_passed, publish_engine
from export.request import ExportRequest, add_request_flags, as_request, check_out, export_request
from export.source import Source, open_source
from runtime.formats.openvino_description import OpenVinoDescription
from runtime.formats.precision import BF16, FLOAT32, FP32, INT64
from runtime.formats.sidecar import Sidecar, weights_path
from runtime.formats.tensor_spec import NetworkTensors, TensorSpec, condition_specs
from runtime.formats.verification_record import VerificationRecord
from runtime.process_flags import ProcessFlags

if TYPE_CHECKING:
    import onnx

    from export.fold_time import Folding
    from export.openvino_graph import Rewriting
    from runtime.engines.verification import EngineVerification

DEFAULT_OUT = Path("unet.xml")
PRECISIONS = (FP32.name, BF16.name)
_FOLD_INSTEAD = "Leave out --no-fold-time, which lets bf16 round t and what is computed from it."


def export_openvino(
    out: ExportRequest | Path | str = DEFAULT_OUT,
    checkpoint: Path | str | None = None,
    onnx_file: Path | str | None = None,
    bf16: bool = False,
    fold: bool = True,
    flags: ProcessFlags | None = None,
    allow_pickle: bool = False,
    debug: bool = False,
) -> Exported:
    """Convert, verify and publish an OpenVINO engine: `….xml`, its `.bin`, its reference predictions and its sidecar.

    A reader sees the old engine or the new one, whatever ends this program.

    Args:
        out: the file to write, `….xml`; or a request, which holds all that follows.
        checkpoint: any diffusers `DDPMPipeline` folder; its reference is PyTorch.
        onnx_file: instead of a checkpoint; its reference is ONNX Runtime.
        bf16: compute in bfloat16 instead of float32.
        fold: replace the time path by tables.
        flags: what an ONNX file does not say of its process.
        allow_pickle, debug: as of `ExportRequest`.

    Returns:
        The file and what was verified of it; the report holds the sidecar too.

    Raises:
        InputError: a source that cannot be used, or files that cannot be written.
        DeviceUnavailableError: OpenVINO is not installed, or this CPU has no bf16, so nothing could be verified.
        VerificationError: the engine differs from its reference; nothing was written.
    """
    request = as_request(
        out,
        checkpoint=checkpoint,
        onnx=onnx_file,
        precision=BF16.name if bf16 else FP32.name,
        fold=fold,
        process=flags or ProcessFlags(),
        allow_pickle=allow_pickle,
        debug=debug,
    )
    check_out(request.out, ".xml")
    request.check_precision(PRECISIONS)
    _check_device(request.precision)
    with open_source(request) as source:
        return _exported(request, source)


def _exported(request: ExportRequest, source: Source) -> Exported:
    """Convert, verify and publish."""
    out, model, folding = request.out, source.model, None
    if request.fold:
        from export.fold_time import fold_time

        model, folding = fold_time(model, source.process.schedule.num_train_timesteps, str(source.path))
    network, weights, rewriting = _convert(model, source)
    sidecar, golden, verification = _verified(source, folding, rewriting, request, network, weights)
    publish_engine(out, sidecar, golden, {weights_path(out): weights, out: network})
    size_bytes = len(network) + len(weights)
    report = {
        "summary": (
            f"{out}: {request.precision}, {size_bytes / 1e6:.1f} MB; {accuracy(verification)}\n"
            f"next: python -m runtime.sample --engine {out}"
        ),
        "xml": str(out),
        "source": str(source.path),
        "size_bytes": size_bytes,
        **sidecar.to_json(),
    }
    return Exported(out, source.path, request.precision, size_bytes, verification, report)


def _check_device(precision: str) -> None:
    try:
        import openvino

        from runtime.engines.openvino_cpu import check_precision
    except ModuleNotFoundError as error:
        raise DeviceUnavailableError(
            f'needs OpenVINO, and the module {error.name!r} is not installed; pip install "ddpm-rt[cpu,export]"'
        ) from error
    check_precision(openvino.Core(), precision, "--bf16 (an engine is verified where it is built)")


def _convert(model: onnx.ModelProto, source: Source) -> tuple[bytes, bytes, Rewriting]:
    """OpenVINO's representation: the network as XML, and its constants, float32 as they are.

    Raises:
        InputError: OpenVINO does not know an operator, or a form of it.
    """
    import onnx
    import openvino

    from export.network_io import condition_names, tell_inputs_apart
    from export.openvino_graph import rewrite_for_openvino

    say(f"converting with OpenVINO {openvino.__version__}")
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    rewriting = rewrite_for_openvino(
        rewritten, tell_inputs_apart(model.graph, "network", condition_names(model))[1].name
    )
    try:
        converted = openvino.Core().read_model(source.finished(rewritten).SerializeToString())
    except RuntimeError as error:
        raise InputError(
            f"{source.path}: OpenVINO {openvino.__version__.partition('-')[0]} cannot convert it ({reason(error)}); "
            "export the network with standard operators of opset 18, or run the file itself with "
            "`python -m runtime.sample --backend onnxruntime`"
        ) from error
    if len(converted.inputs) != 2 + len(source.process.conditions):
        found = " and ".join(entry.get_any_name() for entry in converted.inputs)
        raise InputError(
            f"{source.path}: the prediction is made from {found} alone, expected one that depends on the noisy sample "
            "and on the timestep, and on every condition; export the whole network"
        )
    with work_folder() as folder:
        xml = folder / "unet.xml"
        openvino.serialize(converted, str(xml))
        return xml.read_bytes(), xml.with_suffix(".bin").read_bytes(), rewriting


def _verified(
    source: Source,
    folding: Folding | None,
    rewriting: Rewriting,
    request: ExportRequest,
    network: bytes,
    weights: bytes,
) -> tuple[Sidecar[OpenVinoDescription], bytes, EngineVerification]:
    """Run the very files that will be published, and describe them."""
    import openvino

    from runtime.engines.openvino_cpu import OpenVinoEngine, place_here
    from runtime.engines.verification import predict_with, verify_engine

    precision = request.precision
    golden = source.golden(precision)
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
                condition_specs(source.process.conditions),
            ),
            time_path={"folded": False} if folding is None else {"folded": True, **folding.to_json()},
            rewritten=asdict(rewriting),
            onnx_sha256=source.sha256,
        ),
        verification=VerificationRecord(passed=False),
        golden_sha256=hashlib.sha256(content).hexdigest(),
    )
    with work_folder() as folder:
        xml = folder / request.out.name
        xml.write_bytes(network)
        xml.with_suffix(".bin").write_bytes(weights)
        engine = OpenVinoEngine(xml, sidecar=sidecar)
        say(f"verifying {engine.name}")
        ran_on = f"{engine.name}, {place_here()}"
        verification = verify_engine(golden, source.process, predict_with(engine), precision, source.reference, ran_on)
    check_passed(request, source.reference, verification, "Leave out --bf16.", _FOLD_INSTEAD)
    return replace(sidecar, verification=verification.record()), content, verification


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser(
        "export.to_openvino",
        "Convert a checkpoint or an ONNX file to an OpenVINO engine for the CPU, and verify it against float32.",
        "The time path is evaluated once, in float32, and looked up from tables. Nothing is published that fails.",
    )
    add_request_flags(parser, DEFAULT_OUT, {"bf16": "compute in bfloat16, on CPUs that have it"})

    def run(args: argparse.Namespace) -> Report:
        return dict(export_openvino(export_request(args)).report)

    return run_program(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
