"""Checkpoint to ONNX, and ONNX to engines. Nothing is published before it is checked."""
