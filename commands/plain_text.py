"""Words for a terminal that has not all of Unicode: the nearest plain ones, never an error instead of the message."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

_ERRORS = "ddpm-rt.plain"
_PLAIN = {
    "−": "-", "–": "-", "—": "-", "…": "...", "×": "x", "·": "*", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~",
    "→": "->", "←": "<-", "‖": "||", "√": "sqrt", "Δ": "delta", "µ": "u", "“": '"', "”": '"', "‘": "'", "’": "'",
    "α": "alpha", "β": "beta", "ε": "eps", "η": "eta", "λ": "lambda", "σ": "sigma", "ᾱ": "alpha_bar", "∞": "inf",
    "̄": "", "█": "#", "⁻": "^-",
}  # fmt: skip


def let_output_be_plain() -> None:
    """Let standard output and error write what their encoding has no characters for in others."""
    codecs.register_error(_ERRORS, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


def _in_ascii(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    similar = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return similar or character.encode("ascii", "backslashreplace").decode()
