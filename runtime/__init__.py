"""Engine and seed in, images out. Never imports torch, diffusers or onnx (the torch engine excepted)."""

from runtime.sampler import NonFiniteError, Sampler

__all__ = ["NonFiniteError", "Sampler"]
