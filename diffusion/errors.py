"""The error for input that cannot be used, as opposed to a bug."""

from __future__ import annotations


class InputError(ValueError):
    """A value, a file or a flag that cannot be used.

    The message is one line that names the thing, what was found, what was expected and the remedy.
    Commands print that line and exit with 2.
    """


def in_file(source: str, error: InputError, remedy: str) -> InputError:
    """The error with the file that it is about before it, and the way out behind it unless it names one itself."""
    return InputError(f"{source}: {error}" if "; " in str(error) else f"{source}: {error}; {remedy}")
