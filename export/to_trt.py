"""`python -m export.to_trt`: a checkpoint or an ONNX file to a TensorRT plan, verified, then published."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from commands.program import Report, make_parser, run_program, say
from commands.whole_files import work_folder, write_whole_text
from diffusion.errors import InputError
from export.publication import Exported, accuracy, check_passed, publish_engine
from export.request import ExportRequest, add_request_flags, as_request, check_out, export_request
from export.source import Source, open_source
from export.tensorrt_build import Built
from export.tensorrt_flags import add_options_flags, tensorrt_options
from export.tensorrt_options import BuildSettings, TensorRtOptions, build_settings, choose_flavor
from export.tensorrt_process import BuildProcess
from runtime.device.driver import DriverFacts, driver_facts
from runtime.formats.flavor import Flavor
from runtime.formats.plan_description import PlanDescription
from runtime.formats.precision import FLOAT32, INT64, PRECISIONS
from runtime.formats.sidecar import Sidecar
from runtime.formats.tensor_spec import NetworkTensors, TensorSpec, condition_specs
from runtime.process_flags import ProcessFlags

if TYPE_CHECKING:
    import onnx

    from export.fold_time import Folding
    from export.plan_verification import PlanVerification
    from runtime.formats.golden import Golden

DEFAULT_OUT = Path("unet.plan")
# A plan holds its weights once, and code of the builder's for each kind of GPU.
_SHARE_OF_WEIGHTS, _CODE_BYTES = {"fp32": 1.1, "fp16": 0.6, "bf16": 0.6}, 2**24


@dataclass(frozen=True)
class _Job:
    """What was asked for, and what it is built with here."""

    export: ExportRequest
    options: TensorRtOptions
    flavor: Flavor
    driver: DriverFacts
    settings: BuildSettings


@dataclass(frozen=True)
class _Network:
    """The graph for the builder, and what was done to it."""

    model: onnx.ModelProto
    golden: Golden
    folding: Folding | None
    kept: tuple[str, ...]
    num_group_norms: int


def export_trt(
    out: ExportRequest | Path | str = DEFAULT_OUT,
    options: TensorRtOptions | None = None,
    checkpoint: Path | str | None = None,
    onnx_file: Path | str | None = None,
    precision: str = "fp32",
    fold: bool = True,
    flags: ProcessFlags | None = None,
    allow_pickle: bool = False,
    debug: bool = False,
) -> Exported:
    """Build, verify and publish a TensorRT plan: `….plan`, its reference predictions and its sidecar.

    Args:
        out: the file to write, `….plan`; or a request, which holds what follows but the options.
        options: how it is built; None for the defaults.
        checkpoint: any diffusers `DDPMPipeline` folder; its reference is PyTorch.
        onnx_file: instead of a checkpoint; its reference is ONNX Runtime.
        precision: `fp32`, `fp16` or `bf16`.
        fold: replace the time path by tables.
        flags: what an ONNX file does not say of its process.
        allow_pickle, debug: as of `ExportRequest`.

    Returns:
        The file and what was verified of it, which says whether the plan itself ran; the report holds the sidecar too.

    Raises:
        InputError: a source that cannot be used or built, options that do not fit each other, a file that cannot be
            written.
        DeviceUnavailableError: the builder is not installed, or there is no GPU for what needs one.
        VerificationError: the network differs from its reference; nothing was written.
    """
    request = as_request(
        out,
        checkpoint=checkpoint,
        onnx=onnx_file,
        precision=precision,
        fold=fold,
        process=flags or ProcessFlags(),
        allow_pickle=allow_pickle,
        debug=debug,
    )
    options = options or TensorRtOptions()
    check_out(request.out, ".plan")
    driver = driver_facts()
    flavor = choose_flavor(options.flavor, driver)
    settings = build_settings(options, flavor, driver, request.precision)
    with open_source(request, share=_SHARE_OF_WEIGHTS[request.precision], more_bytes=_CODE_BYTES) as source:
        conditions = {condition.name: condition.shape for condition in source.process.conditions}
        settings = replace(settings, chw=tuple(source.process.sample.chw), conditions=conditions)
        return _exported(source, _Job(request, options, flavor, driver, settings))


def _exported(source: Source, job: _Job) -> Exported:
    """Prepare, build, verify and publish; while the plan is built, its network is verified."""
    from export.plan_verification import verify_network

    request, settings, path = job.export, job.settings, str(source.path)
    out, precision = request.out, request.precision
    for flag, shapes in job.options.shapes.items():
        of_one = {"x": settings.chw, "t": (), **settings.conditions}
        shapes.check(flag, {name: list(sizes) for name, sizes in of_one.items()})
    network = _prepare(source, job)
    content = _for_builder(network.model, settings)
    say(f"building with {settings.title}, and verifying the {precision} network on the CPU meanwhile")
    with BuildProcess(job.flavor, content, settings, path) as process:
        verification = verify_network(network.model, network.golden, source.process, precision, source.reference)
        _check_passed(request, source, verification)
        built = process.wait()
    golden = network.golden.to_bytes()
    sidecar = Sidecar(
        sha256=hashlib.sha256(built.plan).hexdigest(),
        process=source.process,
        engine=_describe(source, job, network, built),
        verification=verification.record(),
        golden_sha256=hashlib.sha256(golden).hexdigest(),
    )
    where = "not run: verified as its network on the CPU"
    if _can_execute(job):
        verification, where = _verify_executed(source, job, network, built.plan, sidecar), "run on the GPU"
        sidecar = replace(sidecar, verification=verification.record())
    publish_engine(out, sidecar, golden, {out: built.plan})
    if settings.layers is not None and built.layers is not None:
        write_whole_text(settings.layers, built.layers + "\n")
    size_bytes = len(built.plan)
    report = {
        "summary": (
            f"{out}: {precision}, {settings.title}, {size_bytes / 1e6:.1f} MB, {where}; "
            f"{accuracy(verification)}\nnext: python -m runtime.sample --engine {out}"
        ),
        "plan": str(out),
        "source": path,
        "size_bytes": size_bytes,
        **sidecar.to_json(),
    }
    return Exported(out, source.path, precision, size_bytes, verification, report)


def _check_passed(request: ExportRequest, source: Source, verification: PlanVerification) -> None:
    from export.low_precision import other_precision

    check_passed(request, source.reference, verification, other_precision(request.precision))


def _prepare(source: Source, job: _Job) -> _Network:
    from export.fold_time import fold_time
    from export.graph_facts import name_nodes
    from export.low_precision import lower_precision
    from export.network_io import with_contract_names
    from export.normalization import write_group_norm

    request, settings, path = job.export, job.settings, str(source.path)
    model, folding = with_contract_names(source.model, path), None
    _refuse_attention(model, settings, path)
    model, num_group_norms = write_group_norm(model, job.options.group_norm, path)
    if request.fold:
        model, folding = fold_time(model, source.process.schedule.num_train_timesteps, path)
    name_nodes(model)
    with contextlib.ExitStack() as stack:
        check = None
        if request.onnx is not None:  # AutoCast does not name the operators that it does not know
            check = BuildProcess(job.flavor, model.SerializeToString(), settings, path, only_check=True)
            stack.enter_context(check)
        golden = source.golden(request.precision)
        if check is not None:
            check.wait_for_check()
    if request.precision == "fp32":
        return _Network(source.finished(model), golden, folding, (), num_group_norms)
    names = [condition.name for condition in source.process.conditions]
    mixed = lower_precision(model, request.precision, golden, path, debug=request.debug, conditions=names)
    return _Network(source.finished(mixed.model), golden, folding, mixed.kept, num_group_norms)


def _refuse_attention(model: onnx.ModelProto, settings: BuildSettings, source: str) -> None:
    """Opset 23's Attention crashes TensorRT-RTX 1.7."""
    from export.graph_facts import is_standard

    if not settings.is_rtx:
        return
    for node in model.graph.node:
        if is_standard(node, "Attention"):
            raise InputError(
                f"{source}: {settings.title} cannot build the node {node.name or node.output[0]} of kind Attention "
                "(opset 23); export the network with --opset 18 to 21, which takes attention apart"
            )


def _for_builder(model: onnx.ModelProto, settings: BuildSettings) -> bytes:
    from export.network_io import fix_batch

    if not settings.static:
        return model.SerializeToString()
    fixed = type(model)()
    fixed.CopyFrom(model)
    fix_batch(fixed, settings.profiles[0].opt)
    return fixed.SerializeToString()


def _describe(source: Source, job: _Job, network: _Network, built: Built) -> PlanDescription:
    from export.normalization import FORMS

    settings, driver, precision = job.settings, job.driver, job.export.precision
    sample, io_type = source.process.sample, PRECISIONS[precision].element_type.name
    batch = settings.profiles[0].opt if settings.static else "N"
    t_type = FLOAT32.name if network.folding is None else INT64.name
    output = (batch, source.process.prediction_channels, sample.height, sample.width)
    return PlanDescription(
        flavor=job.flavor,
        builder_version=built.version,
        precision=precision,
        tensors=NetworkTensors(
            TensorSpec("x", io_type, (batch, *sample.chw)),
            TensorSpec("t", t_type, (batch,)),
            TensorSpec("prediction", io_type, output),
            condition_specs(source.process.conditions, batch),
        ),
        profiles=settings.profiles,
        compute_capabilities=settings.capabilities,
        hardware_compatibility=settings.hardware_compatibility,
        version_compatible=settings.version_compatible,
        built_on_gpu=None if driver.missing else driver.gpus[0].name,
        built_on_driver=driver.version,
        tf32="TF32" in built.flags,
        builder_flags=built.flags,
        optimization_level=built.optimization_level,
        timing_cache_sha256=built.timing_cache_sha256,
        onnx_sha256=source.sha256,
        time_path={"folded": False} if network.folding is None else {"folded": True, **network.folding.to_json()},
        kept_in_float32=network.kept,
        group_norm=FORMS[job.options.group_norm],
        group_norms=network.num_group_norms,
        refittable=settings.refit,
        stripped=settings.strip,
    )


def _can_execute(job: _Job) -> bool:
    if job.driver.missing or job.settings.strip:
        return False
    return job.driver.gpus[0].compute_capability in job.settings.capabilities


def _verify_executed(
    source: Source, job: _Job, network: _Network, plan: bytes, sidecar: Sidecar[PlanDescription]
) -> PlanVerification:
    """Run the plan itself on the GPU that is here."""
    from export.plan_verification import PlanVerification, compare_predictions
    from runtime.engines.tensorrt_engine import TensorRtEngine
    from runtime.engines.tensorrt_refusals import accept_plan
    from runtime.engines.verification import predict_with, verify_engine

    with work_folder() as folder:
        path = folder / job.export.out.name
        path.write_bytes(plan)
        accepted = accept_plan(path, sidecar)
        engine = TensorRtEngine(accepted)
        say(f"verifying {engine.name}")
        predict = predict_with(engine, accepted.plan.fitting_batch)
        where, precision = f"{engine.name}, driver {job.driver.version}", job.export.precision
        compared = compare_predictions({where: predict}, network.golden, precision, source.reference)
        measured = verify_engine(network.golden, source.process, predict, precision, source.reference, where)
    verification = PlanVerification(**vars(measured), compared=compared, executed=True)
    _check_passed(job.export, source, verification)
    return verification


def run(args: argparse.Namespace) -> Report:
    """Do what the command line says. Raises as `export_trt`."""
    request = export_request(args)
    check_out(request.out, ".plan")  # before what the batches say
    return dict(export_trt(request, tensorrt_options(args)).report)


def make_command() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(
        "export.to_trt",
        "Build a TensorRT engine from a checkpoint or an ONNX file, and verify it against float32.",
        "The time path is evaluated once, in float32, and looked up from tables. Nothing is published that fails. "
        "The plan's inputs are x [N, C, H, W] and t [N], its output is prediction. trtexec's spellings work too.",
    )
    precisions = {"fp16": "compute in float16", "bf16": "compute in bfloat16"}
    add_request_flags(parser, DEFAULT_OUT, precisions, out_spellings=("--out", "--saveEngine"))
    add_options_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_program(make_command(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
