"""Runs: samples that are drawn into a folder, and can be interrupted and gone on with."""
