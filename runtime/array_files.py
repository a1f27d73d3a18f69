"""What NumPy raises for an array file that is cut, damaged or none. It goes by the content, not by the suffix."""

from __future__ import annotations

import zipfile
import zlib

UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
"""Of `numpy.load`, with `allow_pickle=False`, used as an archive's context, and of reading the arrays of one."""
