"""What goes wrong because of what was asked for, told apart from what is a bug of ours."""

from __future__ import annotations


class InputError(ValueError):
    """Something given to us cannot be used: a value, a file, a flag.

    The message is one line that names the thing, what was found, what was expected and the remedy.
    Commands print that line and exit with 2.
    """
