"""Data to checkpoint: Algorithm 1 of Ho et al. 2020 with a diffusers UNet2DModel."""

from ddpm_rt.own_packages import import_own_packages

# Before the working directory is asked for them, which `python -m` searches first; and `commands` before any library of
# somebody else's, see commands/__init__.py.
import_own_packages("commands", "diffusion", "runtime")
