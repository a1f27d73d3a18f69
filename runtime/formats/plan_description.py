"""What a plan's sidecar says of the plan, which itself is opaque: the object `engine` of `unet.plan.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from diffusion.errors import InputError
from runtime.formats.batch_profile import BatchProfile
from runtime.formats.fields import Fields
from runtime.formats.flavor import FLAVORS, Flavor
from runtime.formats.precision import ENGINE_PRECISIONS
from runtime.formats.tensor_spec import NetworkTensors

REBUILD = "python -m export.to_trt"
HARDWARE_COMPATIBILITIES = ("none", "ampere_plus", "same_compute_capability")


@dataclass(frozen=True)
class PlanDescription:
    """A plan.

    What has a default is told for people; nothing that runs a plan depends on it, except on `stripped`.

    Attributes:
        flavor: whose runtime it needs.
        builder_version: such as `1.7.1.116`.
        precision: `fp32`, `fp16` or `bf16`.
        tensors: its inputs and its output.
        profiles: in the order of the plan's optimization profiles.
        compute_capabilities: that it was built for.
        hardware_compatibility: one of `HARDWARE_COMPATIBILITIES`.
        version_compatible: whether later releases of the same major version run it.
        built_on_gpu, built_on_driver: None if it was built without a GPU.
        tf32, builder_flags, optimization_level: that were set.
        timing_cache_sha256: of the cache of kernels' times as the build left it; None where there was none.
        onnx_sha256: of the network that it was made from.
        time_path: whether it was folded, and into what.
        kept_in_float32: nodes that compute in float32.
        group_norm, group_norms: the form of group normalizations, and how many there are.
        refittable, stripped: whether its weights can be changed, and whether they are left out.
    """

    flavor: Flavor
    builder_version: str
    precision: str
    tensors: NetworkTensors
    profiles: tuple[BatchProfile, ...]
    compute_capabilities: tuple[str, ...]
    hardware_compatibility: str
    version_compatible: bool
    built_on_gpu: str | None
    built_on_driver: str | None
    tf32: bool = False
    builder_flags: tuple[str, ...] = ()
    optimization_level: int | None = None
    timing_cache_sha256: str | None = None
    onnx_sha256: str | None = None
    time_path: Mapping[str, Any] = field(default_factory=dict)
    kept_in_float32: tuple[str, ...] = ()
    group_norm: str | None = None
    group_norms: int = 0
    refittable: bool = False
    stripped: bool = False

    rebuild: ClassVar[str] = REBUILD
    """The command that makes a plan, for errors."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "flavor": self.flavor.name,
            "builder": f"{self.flavor.title} {self.builder_version}",
            "builder_version": self.builder_version,
            "precision": self.precision,
            **self.tensors.to_json(),
            "batch_profiles": [profile.to_json() for profile in self.profiles],
            "compute_capabilities": list(self.compute_capabilities),
            "built_on": {"gpu": self.built_on_gpu, "driver": self.built_on_driver},
            "version_compatible": self.version_compatible,
            "hardware_compatibility": self.hardware_compatibility,
            "tf32": self.tf32,
            "builder_flags": list(self.builder_flags),
            "optimization_level": self.optimization_level,
            "timing_cache_sha256": self.timing_cache_sha256,
            "onnx_sha256": self.onnx_sha256,
            "time_path": dict(self.time_path),
            "kept_in_float32": list(self.kept_in_float32),
            "group_norm": self.group_norm,
            "group_norms": self.group_norms,
            "refittable": self.refittable,
            "stripped": self.stripped,
        }

    @classmethod
    def from_json(cls, fields: Fields) -> PlanDescription:
        """The inverse of `to_json`.

        Raises:
            InputError: a field is missing or makes no sense.
        """
        flavor = FLAVORS[fields.choice("flavor", tuple(FLAVORS))]
        built_on = fields.inner("built_on")
        return cls(
            flavor=flavor,
            builder_version=fields.get("builder_version", str),
            precision=fields.choice("precision", ENGINE_PRECISIONS),
            tensors=NetworkTensors.from_json(fields),
            profiles=BatchProfile.list_from_json(fields),
            compute_capabilities=fields.list_of("compute_capabilities", str),
            hardware_compatibility=fields.choice("hardware_compatibility", HARDWARE_COMPATIBILITIES),
            version_compatible=fields.get("version_compatible", bool),
            built_on_gpu=built_on.optional("gpu", str),
            built_on_driver=built_on.optional("driver", str),
            tf32=fields.optional("tf32", bool, False),
            builder_flags=fields.list_of("builder_flags", str),
            optimization_level=fields.optional("optimization_level", int),
            timing_cache_sha256=fields.sha256("timing_cache_sha256", optional=True),
            onnx_sha256=fields.sha256("onnx_sha256", optional=True),
            time_path=fields.optional("time_path", dict, {}),
            kept_in_float32=fields.list_of("kept_in_float32", str),
            group_norm=fields.optional("group_norm", str),
            group_norms=fields.optional("group_norms", int, 0),
            refittable=fields.optional("refittable", bool, False),
            stripped=fields.optional("stripped", bool, False),
        )

    def batch_range(self) -> tuple[int, int]:
        """The smallest and the largest batch; between two profiles there may be batches that neither takes."""
        return min(profile.min for profile in self.profiles), max(profile.max for profile in self.profiles)

    def fitting_batch(self, batch_size: int) -> int:
        """The largest batch that some profile takes and that is not above this one; else the smallest of all."""
        below = [min(profile.max, batch_size) for profile in self.profiles if profile.min <= batch_size]
        return max(below, default=self.batch_range()[0])

    def profile_for(self, batch_size: int, path: Path) -> int:
        """The index of the profile that contains the batch and was tuned for the nearest one.

        Args:
            batch_size: to be run.
            path: of the plan, for the error.

        Raises:
            InputError: no profile contains it.
        """
        places = [i for i, profile in enumerate(self.profiles) if profile.min <= batch_size <= profile.max]
        if not places:
            taken, fitting = ", ".join(map(str, self.profiles)), self.fitting_batch(batch_size)
            raise InputError(
                f"{path}: takes batches of {taken}, found {batch_size}; give `batch_size={fitting}`, or build it with "
                f"`{REBUILD} --min-batch 1 --max-batch {batch_size}`"
            )
        return min(places, key=lambda i: (abs(self.profiles[i].opt - batch_size), self.profiles[i].max))
