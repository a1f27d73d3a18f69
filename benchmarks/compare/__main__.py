"""`python -m benchmarks.compare`; see `command`."""

from benchmarks.compare.command import main

if __name__ == "__main__":
    raise SystemExit(main())
