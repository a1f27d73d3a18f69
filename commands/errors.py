"""Exit codes, and the errors behind them. `InputError` (2) lives with the mathematics, which raises it too."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_INPUT = 2
EXIT_VERIFICATION = 3
EXIT_DEVICE = 4
EXIT_INTERRUPTED = 130


class VerificationError(Exception):
    """A result was made, compared with its reference and found wrong; nothing was published. Exit 3."""


class DeviceUnavailableError(Exception):
    """The device or backend asked for is not on this machine; the message says what is missing. Exit 4."""


class StoppedError(Exception):
    """Stopped by the user; what was finished is kept and the message says how to go on. Exit 130."""
