"""The stages, in the order in which they run, and how long each may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusion.errors import InputError

_PACKAGE = "benchmarks.gpu_check"


@dataclass(frozen=True)
class Stage:
    """One process of the check.

    Attributes:
        name: on the command line and in the report.
        title: for the table.
        function: `module:function`; it takes a `StageContext`.
        budget_seconds: after which it is ended.
        proves: whether it shows that something is right: if it fails, the check has failed.
        needs_kernels: whether it runs the compiled kernels.
        arguments: for the function, by name.
    """

    name: str
    title: str
    function: str
    budget_seconds: float
    proves: bool = False
    needs_kernels: bool = True
    arguments: tuple[tuple[str, object], ...] = ()


def _stage(name: str, title: str, place: str, budget_seconds: float, **options: bool | dict[str, object]) -> Stage:
    arguments = options.pop("arguments", {})
    assert isinstance(arguments, dict)
    proves, needs_kernels = bool(options.pop("proves", False)), bool(options.pop("needs_kernels", True))
    assert not options
    return Stage(name, title, f"{_PACKAGE}.{place}", budget_seconds, proves, needs_kernels, tuple(arguments.items()))


BUILD = _stage("build", "kernels built for this GPU", "build_stage:run", 150, proves=True, needs_kernels=False)

# What is right first, then the ratios, the longest last: compiling takes minutes, and the rest shall not wait for it.
SHORT = (
    _stage("facts", "machine, copy bandwidth", "facts_stage:run", 45, needs_kernels=False),
    BUILD,
    _stage("noise", "noise: the bits of NumPy", "noise_bits:run", 40, proves=True),
    _stage("step", "step: the bits of the C++ step", "step_bits:run", 60, proves=True),
    _stage("chain", "chain: the bits of the host's", "chain_bits:run", 60, proves=True),
    _stage("network", "U-Net: loop = launch = no graph", "network_bits:run", 75, proves=True),
    _stage("bandwidth", "step: bandwidth", "step_bandwidth:run", 45),
    _stage("overhead", "chain over its network", "chain_overhead:run", 100),
    _stage("eager", "against eager PyTorch", "eager_peers:run", 60),
    _stage("sanitizer", "compute-sanitizer", "sanitizer_stage:run", 75, proves=True),
    _stage("tensorrt", "TensorRT modules on this GPU", "tensorrt_modules:run", 30, needs_kernels=False),
    _stage("compiled-1", "against torch.compile, batch 1", "compiled_peers:run", 240, arguments={"batch_size": 1}),
    _stage("compiled-64", "against torch.compile, batch 64", "compiled_peers:run", 240, arguments={"batch_size": 64}),
)
SHORT_MINUTES = 9.0

LONG = (
    _stage("facts", "machine, copy bandwidth", "facts_stage:run", 45, needs_kernels=False),
    BUILD,
    _stage(
        "overhead-batches", "chain over its network, other batches", "chain_overhead:run", 600,
        arguments={"batch_sizes": [2, 4, 16, 32, 128, 512]},
    ),
    _stage("full-chain", "all timesteps, in chunks", "full_chain:run", 300),
    _stage("onnx", "ONNX Runtime's CUDA provider", "engine_files:run_onnx", 300),
    _stage("tensorrt-plans", "plans of every TensorRT here", "engine_files:run_tensorrt", 1200),
    _stage("compiled-8", "against torch.compile, batch 8", "compiled_peers:run", 600, arguments={"batch_size": 8}),
    _stage("compiled-256", "against torch.compile, batch 256", "compiled_peers:run", 900,
           arguments={"batch_size": 256}),
)  # fmt: skip
LONG_MINUTES = 60.0


def choose_stages(stages: Sequence[Stage], wanted: Sequence[str] | None) -> list[Stage]:
    """Those that were named, in their own order, and the build where one of them needs it; all if none was named.

    Raises:
        InputError: there is no stage of that name.
    """
    if not wanted:
        return list(stages)
    known = [stage.name for stage in stages]
    for name in wanted:
        if name not in known:
            raise InputError(f"stage is {name!r}, expected one of {', '.join(known)}")
    chosen = [stage for stage in stages if stage.name in wanted]
    if any(stage.needs_kernels for stage in chosen) and BUILD in stages and BUILD not in chosen:
        first = next(number for number, stage in enumerate(chosen) if stage.needs_kernels)
        chosen.insert(first, BUILD)
    return chosen
