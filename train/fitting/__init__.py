"""Fitted tables: the coefficients and timesteps of a short chain, moved by gradient for one checkpoint."""
