"""`python -m benchmarks.swiss_roll`; see `command`."""

from benchmarks.swiss_roll.command import main

if __name__ == "__main__":
    raise SystemExit(main())
