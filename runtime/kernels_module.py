"""Loads the compiled kernels, or says in one line how to build them."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from commands.errors import DeviceUnavailableError


class KernelsNotBuiltError(DeviceUnavailableError, ImportError):
    """`runtime._kernels` is missing or does not load here; the message names `make build`."""


@functools.cache
def import_kernels() -> ModuleType:
    """The compiled module `runtime._kernels`, whose contents `runtime/_kernels.pyi` describes.

    Raises:
        KernelsNotBuiltError: it has not been built, or not for this Python or this machine.
    """
    try:
        return importlib.import_module("runtime._kernels")
    except ImportError as error:
        raise KernelsNotBuiltError(
            f"the compiled kernels (runtime._kernels) do not load: {error}; run `make build` in the checkout"
        ) from error
