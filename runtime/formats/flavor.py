"""TensorRT and TensorRT-RTX: what builds plans, what runs them, and how to get either."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flavor:
    """One kind of TensorRT.

    Attributes:
        name: as sidecars call it.
        flag: of `--flavor`.
        title: as NVIDIA calls it.
        module: that builds and runs its plans.
        install: how to get the builder.
        needs_gpu: whether it builds only where a GPU is, and for that GPU only.
        lean_module: that runs the version-compatible plans without the builder; empty if there is none.
        origin: what pip cannot know.
    """

    name: str
    flag: str
    title: str
    module: str
    install: str
    needs_gpu: bool
    lean_module: str = ""
    origin: str = ""

    def modules(self, version_compatible: bool) -> tuple[str, ...]:
        """Those that run a plan, the first choice first."""
        return (self.module, self.lean_module) if version_compatible and self.lean_module else (self.module,)

    def pip(self, version: str) -> str:
        """The command that installs the release that built a plan."""
        return f"pip install {self.module.replace('_', '-')}=={version}{self.origin}"


TENSORRT = Flavor(
    "tensorrt",
    "tensorrt",
    "TensorRT",
    "tensorrt",
    'pip install "ddpm-rt[tensorrt]", whose libraries are in the package index of NVIDIA',
    needs_gpu=True,
    lean_module="tensorrt_lean",
    origin=" (its libraries are in NVIDIA's own package index)",
)
RTX = Flavor("tensorrt-rtx", "rtx", "TensorRT-RTX", "tensorrt_rtx", 'pip install "ddpm-rt[rtx]"', needs_gpu=False)

FLAVORS = {each.name: each for each in (TENSORRT, RTX)}
"""By name."""
