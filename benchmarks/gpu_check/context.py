"""What a stage is given, and where it puts what it finds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_check.figures import Target

if TYPE_CHECKING:  # NumPy is not needed to say that there is no GPU
    from runtime.device.interface import DeviceMemory

Publish = Callable[[dict[str, Any]], None]


class StageSkippedError(Exception):
    """A stage cannot run here; the message says what it needs."""


class StageContext:
    """One stage's findings, published whenever there is something new, so that nothing is lost if it is killed.

    Args:
        work_folder: for what is built and kept between stages.
        publish: takes the findings as they are now.
    """

    def __init__(self, work_folder: Path, publish: Publish) -> None:
        self.work_folder = work_folder
        self._publish = publish
        self._findings: dict[str, Any] = {"figures": {}, "checks": [], "targets": []}

    def record(self, name: str, value: Any) -> None:
        """Keep a figure, or anything else that is JSON."""
        self._findings["figures"][name] = finite_json(value)
        self._publish(self._findings)

    def add(self, name: str, entry: Any) -> None:
        """Append an entry to a list of figures."""
        self._findings["figures"].setdefault(name, []).append(finite_json(entry))
        self._publish(self._findings)

    def check(self, name: str, passed: bool, found: str = "") -> bool:
        """Keep whether something is as it must be; one that is not fails the stage, which goes on.

        Args:
            name: what must hold.
            passed: whether it does.
            found: what there was instead.
        """
        entry: dict[str, Any] = {"name": name, "passed": bool(passed)}
        if found and not passed:
            entry["found"] = found
        self._findings["checks"].append(entry)
        self._publish(self._findings)
        return bool(passed)

    def target(self, name: str, value: float, bound: float, at_least: bool) -> None:
        """Keep a figure that is held against a bound; missing it fails nothing."""
        self._findings["targets"].append(Target(name, value, bound, at_least).to_json())
        self._publish(self._findings)

    @property
    def failed_checks(self) -> list[str]:
        """Names of the checks that did not pass."""
        return [entry["name"] for entry in self._findings["checks"] if not entry["passed"]]

    @functools.cached_property
    def kernels(self) -> ModuleType:
        """The compiled module that the build stage made.

        Raises:
            StageSkippedError: it was not made.
        """
        from benchmarks.gpu_check.kernels_build import load_kernels

        return load_kernels(self.work_folder)

    @functools.cached_property
    def memory(self) -> DeviceMemory:
        """Of the GPU, by way of those kernels."""
        if not self.kernels.has_cuda_kernels():  # before `runtime` imports any other
            raise RuntimeError("the kernels were built without CUDA")
        from runtime.device.memory import open_device_memory

        return open_device_memory()


def finite_json(value: Any) -> Any:
    """The same, with null in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): finite_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
