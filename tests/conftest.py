"""Set before anything loads torch or an engine: tests run in several processes, each on one thread.

Two processes whose threads spin for the same two cores are an order of magnitude slower than one thread each.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
