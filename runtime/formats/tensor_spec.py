"""The inputs and the output of a network, as a backend or a sidecar describes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion.conditions import Condition
from runtime.formats.fields import Fields
from runtime.formats.precision import ENGINE_PRECISIONS, FLOAT32, INT64, PRECISIONS

X_TYPES = tuple(PRECISIONS[name].element_type.name for name in ENGINE_PRECISIONS)
T_TYPES = (FLOAT32.name, INT64.name)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output.

    Attributes:
        name: in the file.
        element_type: in the words of whoever describes it.
        shape: sizes; a name or None where the size is open.
    """

    name: str
    element_type: str
    shape: tuple[int | str | None, ...]

    @property
    def batch(self) -> int | None:
        """The first size, if there is one and the file fixes it."""
        return self.shape[0] if self.shape and isinstance(self.shape[0], int) else None

    @property
    def is_column(self) -> bool:
        """Whether it is of shape [N, 1]."""
        return len(self.shape) == 2 and self.shape[1] == 1

    def is_shared_by(self, x: TensorSpec) -> bool:
        """Whether it is one timestep for all samples of x."""
        return not self.shape or (self.batch == 1 and x.batch != 1)

    def batch_range(self) -> tuple[int, int | None]:
        """The smallest and the largest batch of a network with this input."""
        return (1, None) if self.batch is None else (self.batch, self.batch)


def sample_and_timestep(
    inputs: Sequence[TensorSpec], is_timestep: Callable[[TensorSpec], bool] = lambda entry: len(entry.shape) == 1
) -> tuple[TensorSpec, TensorSpec] | None:
    """x (rank 4) and t, in any order and of any name; None for other inputs.

    Args:
        inputs: all of them but conditions.
        is_timestep: which may be t; those of rank 1 unless said otherwise.
    """
    images = [entry for entry in inputs if len(entry.shape) == 4]
    times = [entry for entry in inputs if is_timestep(entry)]
    return (images[0], times[0]) if len(inputs) == 2 and len(images) == len(times) == 1 else None


def condition_specs(conditions: Sequence[Condition], batch: int | str = "N") -> tuple[TensorSpec, ...]:
    """The inputs that a network with these conditions has beside x and t."""
    return tuple(TensorSpec(each.name, each.type, (batch, *each.shape)) for each in conditions)


@dataclass(frozen=True)
class NetworkTensors:
    """What a sidecar says of an engine's tensors, their element types as NumPy and PyTorch call them.

    Attributes:
        x: [N, C, H, W], one of `X_TYPES`.
        t: [N], one of `T_TYPES`.
        prediction: [N, C or 2C, H, W], of the type of x.
        conditions: [N, …], in the order of the process.
    """

    x: TensorSpec
    t: TensorSpec
    prediction: TensorSpec
    conditions: tuple[TensorSpec, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields `inputs` and `outputs`."""
        groups = {"inputs": (self.x, self.t, *self.conditions), "outputs": (self.prediction,)}
        return {
            group: {each.name: {"type": each.element_type, "shape": list(each.shape)} for each in tensors}
            for group, tensors in groups.items()
        }

    @classmethod
    def from_json(cls, fields: Fields) -> NetworkTensors:
        """The inverse of `to_json`, the inputs told apart by rank.

        Raises:
            InputError: other inputs or outputs, or of other types.
        """
        inputs, outputs = _tensors(fields, "inputs"), _tensors(fields, "outputs")
        # An engine with conditions is ours, and so are the names.
        named = [entry for entry in inputs if entry.name in ("x", "t")]
        found = sample_and_timestep(named if len(inputs) > 2 else inputs)
        if found is None or len(outputs) != 1 or len(outputs[0].shape) != 4:
            raise fields.wrong(
                "inputs and outputs",
                [(entry.name, list(entry.shape)) for entry in inputs + outputs],
                "x [N, C, H, W], t [N] and one prediction [N, C or 2C, H, W]",
            )
        (x, t), prediction = found, outputs[0]
        for entry, allowed in ((x, X_TYPES), (t, T_TYPES), (prediction, (x.element_type,))):
            if entry.element_type not in allowed:
                raise fields.wrong(f"the type of {entry.name}", entry.element_type, " or ".join(allowed))
        return cls(x, t, prediction, tuple(entry for entry in inputs if entry not in (x, t)))


def _tensors(fields: Fields, group: str) -> list[TensorSpec]:
    specs = []
    for name, entry in fields.get(group, dict).items():
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("type"), str)
            or not isinstance(entry.get("shape"), list)
        ):
            raise fields.wrong(f"{group}.{name}", entry, "an object with type and shape")
        specs.append(TensorSpec(name, entry["type"], tuple(entry["shape"])))
    return specs
