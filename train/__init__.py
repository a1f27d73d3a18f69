"""Data to checkpoint: Algorithm 1 of Ho et al. 2020 with a diffusers UNet2DModel."""

from ddpm_rt.own_packages import import_own_packages

# Now, before the working directory is asked for the others: `python -m` searches it first.
import_own_packages("commands", "diffusion")
