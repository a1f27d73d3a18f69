"""Engine and seed in, images out. Never imports torch, diffusers or onnx (the torch engine excepted)."""
