"""What a chain on an NVIDIA GPU stands on: the driver, memory, streams, captured graphs."""
