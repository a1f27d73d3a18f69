"""Engine and seed in, images out. Never imports torch, diffusers or onnx (the torch engine excepted)."""

from typing import TYPE_CHECKING

from ddpm_rt.own_packages import import_own_packages

if TYPE_CHECKING:
    from runtime.sampler import NonFiniteError, Sampler
else:

    def __getattr__(name: str) -> object:
        """Imported when asked for: what only needs another module of this package does not wait for all of it."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from runtime import sampler

        return getattr(sampler, name)


__all__ = ["NonFiniteError", "Sampler"]

# Before the working directory is asked for them, which `python -m` searches first; and `commands` before any library of
# somebody else's, see commands/__init__.py.
import_own_packages("commands", "diffusion")
