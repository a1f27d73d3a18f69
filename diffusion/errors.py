"""The error for input that cannot be used, as opposed to a bug."""

from __future__ import annotations


class InputError(ValueError):
    """A value, a file or a flag that cannot be used.

    The message is one line that names the thing, what was found, what was expected and the remedy.
    Commands print that line and exit with 2.
    """
