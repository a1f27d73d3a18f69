"""Measurements: speed, likelihood, quality, side by side with peers."""

from ddpm_rt.own_packages import import_own_packages

# Now, before the working directory is asked for the others: `python -m` searches it first.
import_own_packages("commands", "diffusion", "train", "export", "runtime")
