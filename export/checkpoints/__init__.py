"""Checkpoints of other projects: one reader a format, behind `registry`."""
