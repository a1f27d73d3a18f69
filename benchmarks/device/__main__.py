"""`python -m benchmarks.device`; see `command`."""

from benchmarks.device.command import main

if __name__ == "__main__":
    raise SystemExit(main())
