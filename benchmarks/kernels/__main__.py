"""`python -m benchmarks.kernels`; see `command`."""

from commands.program import launch

if __name__ == "__main__":
    raise SystemExit(launch("benchmarks.kernels", "benchmarks.kernels.command"))
