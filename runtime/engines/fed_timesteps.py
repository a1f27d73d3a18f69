"""The timesteps as a network takes them: of another type or shape than the chain's, or one for the whole batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffusion.errors import InputError
from runtime.engines.network_contract import GUIDE
from runtime.formats.tensor_spec import TensorSpec


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
