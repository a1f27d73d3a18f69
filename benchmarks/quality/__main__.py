"""`python -m benchmarks.quality`; see `command`."""

from benchmarks.quality.command import main

if __name__ == "__main__":
    raise SystemExit(main())
