"""Tests of the compiled kernels against their NumPy twins."""
