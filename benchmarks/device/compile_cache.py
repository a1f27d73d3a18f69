"""What torch.compile made, in a file that can be carried to the next machine of the same kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COMPILE_CACHE = "compile-cache.bin"
"""In the work folder; or in parts, `compile-cache.bin.0` and so on."""


def load_compile_cache(torch: Any, folder: Path) -> int:
    """Let torch.compile find what `save_compile_cache` wrote; return its size in bytes, 0 where there is nothing."""
    whole = folder / COMPILE_CACHE
    parts = [whole] if whole.is_file() else sorted(folder.glob(f"{COMPILE_CACHE}.[0-9]"))
    content = b"".join(part.read_bytes() for part in parts)
    if content:
        torch.compiler.load_cache_artifacts(content)
    return len(content)


def save_compile_cache(torch: Any, folder: Path) -> int:
    """Write what torch.compile made in this process; return its size in bytes, 0 where it made nothing."""
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is None:
        return 0
    (folder / COMPILE_CACHE).write_bytes(artifacts[0])
    return len(artifacts[0])
