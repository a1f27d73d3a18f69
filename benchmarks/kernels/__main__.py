"""`python -m benchmarks.kernels`; see `command`."""

from benchmarks.kernels.command import main

if __name__ == "__main__":
    raise SystemExit(main())
