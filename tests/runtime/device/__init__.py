"""Tests of `runtime/device`."""
