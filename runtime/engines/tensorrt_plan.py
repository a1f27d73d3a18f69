"""What a plan's sidecar says of it, checked: a plan itself is opaque."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.errors import InputError
from diffusion.process import Process
from runtime.engines.network_contract import TensorSpec, check_shapes
from runtime.engines.sidecar import sidecar_path
from runtime.engines.tensorrt_modules import FLAVORS, Flavor
from runtime.formats.precision import ENGINE_PRECISIONS, FLOAT32, INT64, PRECISIONS

REBUILD = "python -m export.to_trt"
X_TYPES = tuple(PRECISIONS[name].element_type.name for name in ENGINE_PRECISIONS)
T_TYPES = (FLOAT32.name, INT64.name)
HARDWARE_COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")


@dataclass(frozen=True)
class BatchProfile:
    """The batches that one optimization profile takes, and the one that it was tuned for."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min} to {self.max}"


@dataclass(frozen=True)
class Plan:
    """A plan as its sidecar describes it.

    Attributes:
        path: of the plan.
        flavor: whose runtime it needs.
        builder_version: such as `1.7.1.116`.
        precision: `fp32`, `fp16` or `bf16`.
        x, t, prediction: its inputs and its output, element types as NumPy and PyTorch call them.
        profiles: in the order of the plan's optimization profiles.
        compute_capabilities: that it was built for.
        hardware_compatibility: one of `HARDWARE_COMPATIBILITY`.
        version_compatible: whether later releases of the same major version run it.
        built_on_gpu, built_on_driver: None if it was built without a GPU.
    """

    path: Path
    flavor: Flavor
    builder_version: str
    precision: str
    x: TensorSpec
    t: TensorSpec
    prediction: TensorSpec
    profiles: tuple[BatchProfile, ...]
    compute_capabilities: tuple[str, ...]
    hardware_compatibility: str
    version_compatible: bool
    built_on_gpu: str | None
    built_on_driver: str | None

    def batch_range(self) -> tuple[int, int]:
        """The smallest and the largest batch; between two profiles there may be batches that neither takes."""
        return min(profile.min for profile in self.profiles), max(profile.max for profile in self.profiles)

    def fitting_batch(self, batch_size: int) -> int:
        """The largest batch that some profile takes and that is not above this one; else the smallest of all."""
        below = [min(profile.max, batch_size) for profile in self.profiles if profile.min <= batch_size]
        return max(below, default=self.batch_range()[0])

    def profile_for(self, batch_size: int) -> int:
        """The index of the profile that contains the batch and was tuned for the nearest one.

        Raises:
            InputError: no profile contains it.
        """
        places = [i for i, profile in enumerate(self.profiles) if profile.min <= batch_size <= profile.max]
        if not places:
            taken = ", ".join(map(str, self.profiles))
            raise InputError(
                f"{self.path}: takes batches of {taken}, found {batch_size}; give --batch-size "
                f"{self.fitting_batch(batch_size)}, or build it with `{REBUILD} --min-batch 1 --max-batch {batch_size}`"
            )
        return min(places, key=lambda i: (abs(self.profiles[i].opt - batch_size), self.profiles[i].max))


def describe_plan(path: Path, engine: Mapping[str, Any], process: Process) -> Plan:
    """Check the object `engine` of a plan's sidecar.

    Args:
        path: of the plan.
        engine: the object.
        process: of the same sidecar; the shapes must fit it.

    Raises:
        InputError: a field is missing or makes no sense, or the plan has no weights of its own.
    """
    fields = _Fields(sidecar_path(path), engine)
    flavor = fields.choice("flavor", tuple(FLAVORS))
    if engine.get("stripped") is True:
        raise InputError(
            f"{path}: was built without its weights, expected a whole plan; refit it, or build it with `{REBUILD}`"
        )
    built_on = fields.get("built_on", dict)
    inputs = [fields.tensor("inputs", name) for name in fields.get("inputs", dict)]
    images = [entry for entry in inputs if len(entry.shape) == 4]
    times = [entry for entry in inputs if len(entry.shape) == 1]
    outputs = [fields.tensor("outputs", name) for name in fields.get("outputs", dict)]
    if len(inputs) != 2 or len(images) != 1 or len(times) != 1 or len(outputs) != 1 or len(outputs[0].shape) != 4:
        raise fields.wrong(
            "inputs and outputs",
            [(entry.name, list(entry.shape)) for entry in inputs + outputs],
            "x [N, C, H, W], t [N] and one prediction [N, C or 2C, H, W]",
        )
    x, t, prediction = images[0], times[0], outputs[0]
    for entry, allowed in ((x, X_TYPES), (t, T_TYPES), (prediction, (x.element_type,))):
        if entry.element_type not in allowed:
            raise fields.wrong(f"the type of {entry.name}", entry.element_type, " or ".join(allowed))
    check_shapes(path, process, x, prediction)
    return Plan(
        path,
        FLAVORS[flavor],
        fields.get("builder_version", str),
        fields.choice("precision", ENGINE_PRECISIONS),
        x,
        t,
        prediction,
        fields.profiles(),
        tuple(map(str, fields.get("compute_capabilities", list))),
        fields.choice("hardware_compatibility", HARDWARE_COMPATIBILITY),
        fields.get("version_compatible", bool),
        built_on.get("gpu"),
        built_on.get("driver"),
    )


class _Fields:
    """Fields of a JSON object, and one-line errors for those that are not as they should be."""

    def __init__(self, path: Path, fields: Mapping[str, Any]) -> None:
        self._path, self._fields = path, fields

    def wrong(self, name: str, found: object, expected: str) -> InputError:
        return InputError(
            f"{self._path}: engine: {name} is {found!r}, expected {expected}; make it again with `{REBUILD}`"
        )

    def get(self, name: str, kind: type) -> Any:
        value = self._fields.get(name)
        if not isinstance(value, kind) or value in ("", [], {}):
            words = {str: "a text", bool: "true or false", list: "a list", dict: "an object"}
            raise self.wrong(name, value, words[kind])
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.get(name, str).lower()
        if value not in choices:
            raise self.wrong(name, value, " or ".join(choices))
        return str(value)

    def tensor(self, group: str, name: str) -> TensorSpec:
        entry = self._fields[group][name]
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("type"), str)
            or not isinstance(entry.get("shape"), list)
        ):
            raise self.wrong(f"{group}.{name}", entry, "an object with type and shape")
        return TensorSpec(name, entry["type"], tuple(entry["shape"]))

    def profiles(self) -> tuple[BatchProfile, ...]:
        profiles = []
        for entry in self.get("batch_profiles", list):
            sizes = [entry.get(name) for name in ("min", "opt", "max")] if isinstance(entry, dict) else []
            whole = [size for size in sizes if type(size) is int]
            if len(whole) != 3 or not 1 <= whole[0] <= whole[1] <= whole[2]:
                raise self.wrong("batch_profiles", entry, "1 ≤ min ≤ opt ≤ max")
            profiles.append(BatchProfile(*whole))
        return tuple(profiles)
