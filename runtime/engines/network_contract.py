"""What an ε-network's inputs and outputs must be, whichever backend reads its file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion.errors import InputError
from diffusion.process import METADATA_KEY, Process, SampleShape
from runtime.process_flags import ProcessFlags


@dataclass(frozen=True)
class TensorSpec:
    """An input or output as a backend describes it.

    Attributes:
        name: in the file.
        element_type: in the backend's words.
        shape: sizes; a name or None where the size is open.
    """

    name: str
    element_type: str
    shape: tuple[int | str | None, ...]

    @property
    def batch(self) -> int | None:
        """The first size, if the file fixes it."""
        return self.shape[0] if isinstance(self.shape[0], int) else None

    def batch_range(self) -> tuple[int, int | None]:
        """The smallest and the largest batch of a network with this input."""
        return (1, None) if self.batch is None else (self.batch, self.batch)


def tell_inputs_apart(
    path: Path, inputs: Sequence[TensorSpec], x_type: str, t_types: Collection[str]
) -> tuple[TensorSpec, TensorSpec]:
    """x (rank 4) and t (rank 1), in any order and of any name.

    Raises:
        InputError: other inputs, or types that are not among those named.
    """
    images = [entry for entry in inputs if len(entry.shape) == 4]
    times = [entry for entry in inputs if len(entry.shape) == 1]
    if len(inputs) != 2 or len(images) != 1 or len(times) != 1:
        found = ", ".join(f"{entry.name}{list(entry.shape)}" for entry in inputs)
        raise InputError(
            f"{path}: inputs are {found}; expected one of rank 4 (x [N, C, H, W]) and one of rank 1 (t [N])"
        )
    for entry, allowed in ((images[0], [x_type]), (times[0], list(t_types))):
        if entry.element_type not in allowed:
            raise InputError(
                f"{path}: input {entry.name} is {entry.element_type}, expected {' or '.join(allowed)}; "
                "export with float32 inputs and outputs"
            )
    return images[0], times[0]


def only_output(path: Path, outputs: Sequence[TensorSpec], element_type: str) -> TensorSpec:
    """The prediction. Raises InputError for another number of outputs, rank or type."""
    if len(outputs) != 1 or len(outputs[0].shape) != 4 or outputs[0].element_type != element_type:
        found = ", ".join(f"{entry.name} {entry.element_type}{list(entry.shape)}" for entry in outputs)
        raise InputError(f"{path}: outputs are {found}; expected one float32 prediction [N, C or 2C, H, W]")
    return outputs[0]


def process_of_onnx(path: Path, metadata: str | None, x: TensorSpec, flags: ProcessFlags) -> Process:
    """The process of an ONNX file: by its metadata, or by flags where it has none.

    Raises:
        InputError: neither describes it, or they contradict each other.
    """
    if metadata is not None:
        return flags.applied_to(Process.from_json_text(metadata, f"{path}, metadata {METADATA_KEY}"), str(path))
    _, *chw = x.shape
    sizes = [size for size in chw if isinstance(size, int)]
    if len(sizes) != 3:
        raise InputError(f"{path}: input {x.name} has the open shape {chw}, expected fixed channels, height and width")
    return flags.process(SampleShape(*sizes), str(path))


def check_shapes(path: Path, process: Process, x: TensorSpec, prediction: TensorSpec) -> None:
    """Raises InputError if a fixed size is not what the process says."""
    sample = process.sample
    for kind, entry, channels in (("input", x, sample.channels), ("output", prediction, process.prediction_channels)):
        expected = (channels, sample.height, sample.width)
        for found, size in zip(entry.shape[1:], expected, strict=True):
            if isinstance(found, int) and found != size:
                raise InputError(
                    f"{path}: {kind} {entry.name} is {list(entry.shape)}, "
                    f"expected [N, {', '.join(map(str, expected))}] for variance_type {process.variance_type}; "
                    "check --variance-type, or export again"
                )


def check_batch(path: Path, x: TensorSpec, batch_size: int) -> None:
    """Raises InputError if the file fixes another batch."""
    if x.batch is not None and x.batch != batch_size:
        raise InputError(
            f"{path}: takes batches of {x.batch}, found {batch_size}; give --batch-size {x.batch}, "
            "or export with a dynamic first axis"
        )
