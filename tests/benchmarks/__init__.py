"""Tests of the benchmarks: that they check first, measure, and say where they were run."""
