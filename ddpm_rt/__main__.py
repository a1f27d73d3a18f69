"""`python -m ddpm_rt`, which is `ddpm-rt`."""

import sys

from ddpm_rt.console import main

if __name__ == "__main__":
    sys.exit(main())
