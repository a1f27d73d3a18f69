"""Progress bars: on a terminal, and nowhere else."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, description: str, unit: str = "it", **options: Any) -> Any:
    """A tqdm bar on standard error; silent where standard error is not a terminal."""
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        **options,
    )
