"""Checkpoint to ONNX, and ONNX to engines. Nothing is published before it is checked."""

import commands  # noqa: F401  # before any library of somebody else's, see commands/__init__.py
