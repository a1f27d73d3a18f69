"""One plan from one network: prepared, built, verified, and published whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from commands.program import say
from commands.whole_files import write_whole_text
from diffusion.errors import InputError
from export.low_precision import fold_and_report, lower_precision, other_precision
from export.publication import check_passed, publish_engine
from export.request import ExportRequest
from export.source import Source
from export.tensorrt_build import BuildSettings, Built
from export.tensorrt_options import TensorRtOptions
from export.tensorrt_process import BuildProcess
from runtime.device.driver import DriverFacts
from runtime.formats.flavor import Flavor
from runtime.formats.plan_description import PlanDescription
from runtime.formats.precision import FLOAT32, INT64, PRECISIONS
from runtime.formats.sidecar import Sidecar
from runtime.formats.tensor_spec import NetworkTensors, TensorSpec, condition_specs

if TYPE_CHECKING:
    import onnx

    from export.fold_time import Folding
    from export.plan_verification import PlanVerification
    from runtime.formats.golden import Golden

PlanSidecar = Sidecar[PlanDescription]


@dataclass(frozen=True)
class PlanRequest:
    """What was asked for, and what it is built with here.

    Attributes:
        export: the network and the file.
        options: how the plan is built.
        flavor: the builder.
        driver: of this machine.
    """

    export: ExportRequest
    options: TensorRtOptions
    flavor: Flavor
    driver: DriverFacts

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `bf16`."""
        return self.export.precision


@dataclass(frozen=True)
class Plan:
    """A published plan: its description, and what was found out about it."""

    sidecar: PlanSidecar
    verification: PlanVerification
    size_bytes: int


@dataclass(frozen=True)
class _Network:
    """The graph for the builder, and what was done to it."""

    model: onnx.ModelProto
    golden: Golden
    folding: Folding | None
    kept: tuple[str, ...]
    num_group_norms: int


def make_plan(source: Source, request: PlanRequest, settings: BuildSettings) -> Plan:
    """Prepare, build, verify and publish; while the plan is built, its network is verified.

    Raises:
        InputError: a network that cannot be built, or files that cannot be written.
        VerificationError: the network that was built differs from its reference; nothing was published.
    """
    from export.plan_verification import verify_network

    conditions = {condition.name: condition.shape for condition in source.process.conditions}
    settings = replace(settings, chw=tuple(source.process.sample.chw), conditions=conditions)
    chw: dict[str, list[int]] = {"x": list(settings.chw), "t": []} | {name: [*of] for name, of in conditions.items()}
    for flag, shapes in request.options.shapes.items():
        shapes.check(flag, chw)
    network = _prepare(source, request, settings)
    content = _for_builder(network.model, settings)
    say(f"building with {settings.title}, and verifying the {request.precision} network on the CPU meanwhile")
    with BuildProcess(request.flavor, content, settings, str(source.path)) as process:
        verification = verify_network(
            network.model, network.golden, source.process, request.precision, source.reference
        )
        check_passed(request.export, source.reference, verification, other_precision(request.precision))
        built = process.wait()
    golden = network.golden.to_bytes()
    sidecar = Sidecar(
        sha256=hashlib.sha256(built.plan).hexdigest(),
        process=source.process,
        engine=_describe(source, request, settings, network, built),
        verification=verification.record(),
        golden_sha256=hashlib.sha256(golden).hexdigest(),
    )
    if _can_execute(request, settings):
        verification = _verify_executed(source, request, network, built.plan, sidecar)
        sidecar = replace(sidecar, verification=verification.record())
    publish_engine(request.export.out, sidecar, golden, {request.export.out: built.plan})
    if settings.layers is not None and built.layers is not None:
        write_whole_text(settings.layers, built.layers + "\n")
    return Plan(sidecar, verification, len(built.plan))


def _prepare(source: Source, request: PlanRequest, settings: BuildSettings) -> _Network:
    from export.graph_facts import name_nodes
    from export.group_norm import write_group_norm
    from export.network_io import with_contract_names

    model, folding = with_contract_names(source.model, str(source.path)), None
    _refuse_attention(model, settings, source.path)
    model, num_group_norms = write_group_norm(model, request.options.group_norm, str(source.path))
    if request.export.fold:
        model, folding = fold_and_report(model, source.process.schedule.num_train_timesteps, str(source.path))
    name_nodes(model)
    with contextlib.ExitStack() as stack:
        if source.path.suffix == ".onnx":  # a foreign one: AutoCast does not name the operators that it does not know
            check = BuildProcess(request.flavor, model.SerializeToString(), settings, str(source.path), True)
            stack.enter_context(check)
        golden = source.golden(request.precision)
        if source.path.suffix == ".onnx":
            check.wait_for_check()
    if request.precision == "fp32":
        return _Network(source.finished(model), golden, folding, (), num_group_norms)
    names = [condition.name for condition in source.process.conditions]
    mixed = lower_precision(
        model, request.precision, golden, str(source.path), debug=request.export.debug, conditions=names
    )
    return _Network(source.finished(mixed.model), golden, folding, mixed.kept, num_group_norms)


def _refuse_attention(model: onnx.ModelProto, settings: BuildSettings, path: Path) -> None:
    """Opset 23's Attention ends TensorRT-RTX 1.7 with a segmentation fault."""
    if not settings.is_rtx:
        return
    for node in model.graph.node:
        if node.op_type == "Attention" and node.domain in ("", "ai.onnx"):
            raise InputError(
                f"{path}: {settings.title} cannot build the node {node.name or node.output[0]} of kind Attention "
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


def _describe(
    source: Source, request: PlanRequest, settings: BuildSettings, network: _Network, built: Built
) -> PlanDescription:
    from export.group_norm import FORMS

    sample, io_type = source.process.sample, PRECISIONS[request.precision].element_type.name
    batch = settings.profiles[0].opt if settings.static else "N"
    t_type = FLOAT32.name if network.folding is None else INT64.name
    output = (batch, source.process.prediction_channels, sample.height, sample.width)
    return PlanDescription(
        flavor=request.flavor,
        builder_version=built.version,
        precision=request.precision,
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
        built_on_gpu=None if request.driver.missing else request.driver.gpus[0].name,
        built_on_driver=request.driver.version,
        tf32="TF32" in built.flags,
        builder_flags=built.flags,
        optimization_level=built.optimization_level,
        timing_cache_sha256=built.timing_cache_sha256,
        onnx_sha256=source.sha256,
        time_path={"folded": False} if network.folding is None else {"folded": True, **network.folding.to_json()},
        kept_in_float32=network.kept,
        group_norm=FORMS[request.options.group_norm],
        group_norms=network.num_group_norms,
        refittable=settings.refit,
        stripped=settings.strip,
    )


def _can_execute(request: PlanRequest, settings: BuildSettings) -> bool:
    if request.driver.missing or settings.strip:
        return False
    return request.driver.gpus[0].compute_capability in settings.capabilities


def _verify_executed(
    source: Source, request: PlanRequest, network: _Network, plan: bytes, sidecar: PlanSidecar
) -> PlanVerification:
    """Run the plan itself on the GPU that is here."""
    from export.plan_verification import PlanVerification, compare_predictions
    from runtime.engines.tensorrt_engine import TensorRtEngine
    from runtime.engines.tensorrt_refusals import accept_plan
    from runtime.engines.verification import predict_with, verify_engine

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / request.export.out.name
        path.write_bytes(plan)
        accepted = accept_plan(path, sidecar)
        engine = TensorRtEngine(accepted)
        say(f"verifying {engine.name}")
        predict = predict_with(engine, accepted.plan.fitting_batch)
        where, precision = f"{engine.name}, driver {request.driver.version}", request.precision
        compared = compare_predictions({where: predict}, network.golden, precision, source.reference)
        measured = verify_engine(network.golden, source.process, predict, precision, source.reference, where)
    verification = PlanVerification(measured, compared, executed=True)
    check_passed(request.export, source.reference, verification, other_precision(request.precision))
    return verification
