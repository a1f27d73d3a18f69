"""Data to checkpoint: Algorithm 1 of Ho et al. 2020 with a diffusers UNet2DModel."""

import commands  # noqa: F401  # before any library of somebody else's, see commands/__init__.py
