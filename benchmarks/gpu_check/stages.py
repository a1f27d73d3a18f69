"""The stages, in the order of their value, and how long each may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.device.command import MEASUREMENTS
from diffusion.errors import InputError


@dataclass(frozen=True)
class Stage:
    """One process of the check.

    Attributes:
        name: on the command line and in the report; without `tests` it is one of `MEASUREMENTS`.
        title: for the table.
        budget_seconds: after which it is ended.
        tests: parts of a stage of checks: `noise` is tests/gpu/test_noise.py. Each may be named on the command line.
        proves: whether it must come to its end for the check to have passed; a check that does not hold fails any.
        needs_kernels: whether it runs the compiled kernels.
    """

    name: str
    title: str
    budget_seconds: float
    tests: tuple[str, ...] = ()
    proves: bool = False
    needs_kernels: bool = True


BUILD = Stage("build", "kernels built for this GPU", 60, proves=True, needs_kernels=False)

SHORT = (
    BUILD,
    Stage("bits", "noise, step and chain: the bits of the host's", 70, ("noise", "step", "chain"), proves=True),
    Stage("network", "U-Net, bf16: error, loop = launch = no graph", 55, ("network",), proves=True),
    Stage("overhead", "chain over its network, batch 1", 40),
    Stage("compiled", "against torch.compile, batch 1", 130),
    Stage("bandwidth", "step: bandwidth", 25),
    Stage("overhead-batches", "chain over its network, batch 8, 64, 256", 60),
    Stage("sanitizer", "compute-sanitizer", 75, ("sanitizer",), proves=True),
    Stage("eager", "against eager PyTorch", 60),
    Stage("network-fp32", "U-Net, fp32: error, loop = launch = no graph", 55, ("network_fp32",), proves=True),
    Stage("tensorrt", "TensorRT modules on this GPU", 30, needs_kernels=False),
)
SHORT_MINUTES = 6.0
REHEARSAL_PATIENCE = 10
"""How many times as long everything may take where no GPU is."""

LONG = (
    BUILD,
    Stage("overhead-more", "chain over its network, other batches", 600),
    Stage("full-chain", "all timesteps, in chunks", 300, proves=True),
    Stage("compiled-8", "against torch.compile, batch 8", 600),
    Stage("compiled-64", "against torch.compile, batch 64", 600),
    Stage("onnx", "ONNX Runtime's CUDA provider", 300),
    Stage("tensorrt-plans", "plans of every TensorRT here", 1200),
)
LONG_MINUTES = 60.0

assert all(stage.tests or stage.name in MEASUREMENTS for stage in (*SHORT, *LONG))


def choose_stages(stages: Sequence[Stage], wanted: Sequence[str] | None) -> list[Stage]:
    """Those that were named, in their own order, and the build where one of them needs it; all if none was named.

    Args:
        stages: to choose from.
        wanted: names of stages, or of parts of one.

    Raises:
        InputError: there is no stage of that name.
    """
    if not wanted:
        return list(stages)
    known = [name for stage in stages for name in dict.fromkeys((stage.name, *stage.tests))]
    for name in wanted:
        if name not in known:
            raise InputError(f"stage is {name!r}, expected one of {', '.join(known)}")
    chosen = []
    for stage in stages:
        parts = tuple(part for part in stage.tests if part in wanted)
        if stage.name in wanted:
            chosen.append(stage)
        elif parts:
            alone = f"{stage.title} ({', '.join(parts)} alone)" if parts != stage.tests else stage.title
            chosen.append(replace(stage, tests=parts, title=alone))
    if any(stage.needs_kernels for stage in chosen) and BUILD in stages and BUILD not in chosen:
        chosen.insert(0, BUILD)
    return chosen
