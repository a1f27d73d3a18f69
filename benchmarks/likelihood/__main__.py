"""`python -m benchmarks.likelihood`; see `command`."""

from benchmarks.likelihood.command import main

if __name__ == "__main__":
    raise SystemExit(main())
