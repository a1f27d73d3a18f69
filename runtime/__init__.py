"""Engine and seed in, images out. Never imports torch, diffusers or onnx (the torch engine excepted)."""

import commands  # noqa: F401  # before any library of somebody else's, see commands/__init__.py
from runtime.sampler import NonFiniteError, Sampler

__all__ = ["NonFiniteError", "Sampler"]
