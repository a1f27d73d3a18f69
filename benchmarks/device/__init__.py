"""What a GPU does, timed: `python -m benchmarks.device NAME`; `benchmarks.gpu_check` runs all of it within minutes."""
