"""Checkpoint to ONNX, and ONNX to engines. Nothing is published before it is checked."""

from ddpm_rt.own_packages import import_own_packages

# Before the working directory is asked for them, which `python -m` searches first; and `commands` before any library of
# somebody else's, see commands/__init__.py.
import_own_packages("commands", "diffusion", "runtime")
