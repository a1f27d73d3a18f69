"""Data to checkpoint: Algorithm 1 of Ho et al. 2020 with a diffusers UNet2DModel."""
