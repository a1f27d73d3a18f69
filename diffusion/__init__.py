"""The mathematics of denoising diffusion. NumPy only, float64 until a table is cast, once, at the end."""
