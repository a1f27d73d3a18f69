"""What an ε-network's inputs and outputs must be, and how t is fed, whichever backend reads its file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffusion.errors import InputError
from diffusion.process import METADATA_KEY, Process, SampleShape
from runtime.engines.onnx_file import OnnxFile
from runtime.formats.tensor_spec import TensorSpec, sample_and_timestep
from runtime.process_flags import ProcessFlags

GUIDE = "docs/foreign-onnx.md"
"""Where users find what to do with a file that is no ε-network as it is."""

MAX_SIZE = 2**20
"""Of a batch, of channels, of a side."""

MAX_CHANNELS_OF_IMAGES = 4


def tell_inputs_apart(
    path: Path, inputs: Sequence[TensorSpec], x_type: str, t_types: Collection[str]
) -> tuple[TensorSpec, TensorSpec]:
    """x (rank 4) and t (a vector, a column or a scalar), in any order and of any name.

    Raises:
        InputError: other inputs, batches that contradict each other, or types that are not among those named.
    """
    apart = sample_and_timestep(inputs, lambda entry: len(entry.shape) < 2 or entry.is_column)
    if apart is None:
        found = ", ".join(f"{entry.name}{list(entry.shape)}" for entry in inputs)
        raise InputError(
            f"{path}: inputs are {found}; expected one of rank 4 (x [N, C, H, W]) and one of rank 1 (t [N]); "
            f"give what else it takes a fixed value, and each input a rank, as {GUIDE} shows"
        )
    x, t = apart
    for entry in (x, t):
        if any(isinstance(size, int) and not 1 <= size <= MAX_SIZE for size in entry.shape):
            raise InputError(
                f"{path}: input {entry.name} is {list(entry.shape)}, expected sizes from 1 to {MAX_SIZE}; export again"
            )
    for entry, allowed in ((x, [x_type]), (t, list(t_types))):
        if entry.element_type not in allowed:
            raise InputError(
                f"{path}: input {entry.name} is {entry.element_type}, expected {' or '.join(allowed)}; "
                f"export with float32 inputs and outputs, or cast them as {GUIDE} shows"
            )
    if t.shape and t.batch not in (None, 1, x.batch):
        if x.batch is not None:
            raise InputError(
                f"{path}: input {x.name} is {list(x.shape)} and input {t.name} is {list(t.shape)}, expected as many "
                "timesteps as samples; export with a dynamic first axis"
            )
        x = replace(x, shape=(t.batch, *x.shape[1:]))
    return x, t


def only_output(
    path: Path, outputs: Sequence[TensorSpec], element_type: str, name: str | None = None
) -> tuple[int, TensorSpec]:
    """The prediction and its place among the outputs.

    Args:
        path: of the file.
        outputs: all of them.
        element_type: of float32, in the backend's words.
        name: of the prediction, where there are several.

    Raises:
        InputError: several and no name, none of that name, or another rank or type.
    """
    found = ", ".join(f"{entry.name} {entry.element_type}{list(entry.shape)}" for entry in outputs)
    places = [place for place, entry in enumerate(outputs) if name in (None, entry.name)]
    if len(places) != 1 or len(outputs[places[0]].shape) != 4 or outputs[places[0]].element_type != element_type:
        if name is not None:
            way_out = f"and `output_name` is {name}"
        elif len(outputs) > 1:
            way_out = "say which it is with `output_name`"
        else:
            way_out = f"export it so, or cast and reshape it as {GUIDE} shows"
        raise InputError(f"{path}: outputs are {found}; expected one float32 prediction [N, C or 2C, H, W]; {way_out}")
    return places[0], outputs[places[0]]


def process_of_onnx(file: OnnxFile, metadata: str | None, x: TensorSpec, flags: ProcessFlags) -> Process:
    """The process of an ONNX file: by its metadata, or by flags where it has none.

    Raises:
        InputError: neither describes it, or they contradict each other, or the channels seem to be last.
    """
    path = file.path
    if metadata is not None:
        return flags.applied_to(Process.from_json_text(metadata, f"{path}, metadata {METADATA_KEY}"), str(path))
    sizes = []
    for place, name in enumerate(("channels", "height", "width"), 1):
        size, flag = x.shape[place], getattr(flags, name)
        if isinstance(size, int) and flag not in (None, size):
            _, *chw = x.shape
            raise InputError(
                f"{path}: `{name}` is {flag}, but input {x.name} has the shape {chw}, expected channels, height and "
                f"width; correct it, or export the network in that order, as {GUIDE} shows"
            )
        sizes.append(size if isinstance(size, int) else flag)
    if None in sizes:
        _, *chw = x.shape
        raise InputError(
            f"{path}: input {x.name} has the open shape {chw}, expected fixed channels, height and width; "
            "give those that are open with `channels`, `height` and `width`"
        )
    channels, height, width = (int(size) for size in sizes if size is not None)
    if flags.channels is None:
        _check_order(file, x, (channels, height, width))
    return flags.process(SampleShape(channels, height, width), str(path))


def _check_order(file: OnnxFile, x: TensorSpec, chw: tuple[int, int, int]) -> None:
    """Raises InputError for images whose channels are last, or may be: they would be drawn transposed."""
    channels, height, width = chw
    few = range(1, MAX_CHANNELS_OF_IMAGES + 1)
    wrong = width in few and channels not in few
    # The first thing that such a network does to x is to bring it into the usual order.
    wrong = wrong or x.name in file.channels_last
    unclear = 1 < channels == height == width and channels in few
    if wrong or unclear:
        found = "its channels are last" if wrong else "its channels may be first or last"
        raise InputError(
            f"{file.path}: input {x.name} is {list(x.shape)}: {found}, expected [N, C, H, W]; export it so, wrap it as "
            f"{GUIDE} shows, or give {channels} for `channels` if there are so many"
        )


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
                    "check `variance_type`, or export again, with the channels first"
                )


class FedTimesteps:
    """The buffer that a network reads t from.

    Args:
        path: of the network's file.
        spec: the input.
        t: float32 [N], the chain's own; it is used itself where the network takes it as it is.
        x: the other input.
        kind: the input's type; whole numbers are exact in it.

    Attributes:
        array: what to bind, C-contiguous.
    """

    def __init__(self, path: Path, spec: TensorSpec, t: np.ndarray, x: TensorSpec, kind: type) -> None:
        self._path, self._name, self._t = path, spec.name, t
        self._shared = spec.is_shared_by(x)
        shape = timesteps_shape(spec, x, len(t))
        self._is_own = not self._shared and t.dtype == kind
        self.array = t.reshape(shape) if self._is_own else np.zeros(shape, kind)

    def fill(self) -> None:
        """Bring what the chain wrote into `array`.

        Raises:
            InputError: samples at different timesteps, and the network takes one for all.
        """
        if self._is_own:
            return
        if not self._shared:
            np.copyto(self.array, self._t.reshape(self.array.shape), casting="unsafe")
            return
        if (self._t != self._t[0]).any():
            raise InputError(
                f"{self._path}: takes one timestep for the whole batch ({self._name}), found samples at different "
                f"ones; expected [N]: export it so, or wrap it as {GUIDE} shows"
            )
        self.array[...] = self._t[0]


def timesteps_shape(spec: TensorSpec, x: TensorSpec, batch_size: int) -> tuple[int, ...]:
    """The shape of the input t in a batch of x."""
    if not spec.shape:
        return ()
    return (1 if spec.is_shared_by(x) else batch_size, *(1 for _ in spec.shape[1:]))


def call_failed(path: Path, num: int, why: str) -> InputError:
    """The error of a network that fails when it is called."""
    return InputError(
        f"{path}: the network fails on a batch of {num} ({why}); try a smaller `batch_size`, or export again"
    )
