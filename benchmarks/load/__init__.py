"""Services under load over HTTP, on this machine's loopback: the slots, static batches, and diffusers' pipeline."""
