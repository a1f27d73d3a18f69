"""Chains on the host and on a GPU behind one interface, and the pools that a sampler draws them from."""
