"""The frame around every command: one-line errors, exit codes, `--json`, `--debug`, Ctrl-C, plain terminals."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import json
import os
import signal
import sys
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

from commands.errors import (
    EXIT_BUG,
    EXIT_DEVICE,
    EXIT_DONE,
    EXIT_INPUT,
    EXIT_INTERRUPTED,
    EXIT_VERIFICATION,
    DeviceUnavailableError,
    StoppedError,
    VerificationError,
    missing_module,
)
from ddpm_rt.console import as_called, program_name
from diffusion.errors import InputError

Report = dict[str, Any]

_PLAIN_ERRORS = "ddpm-rt.plain"
_PLAIN = {
    "−": "-", "–": "-", "—": "-", "…": "...", "×": "x", "·": "*", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~",
    "→": "->", "←": "<-", "‖": "||", "√": "sqrt", "Δ": "delta", "µ": "u", "“": '"', "”": '"', "‘": "'", "’": "'",
    "α": "alpha", "β": "beta", "ε": "eps", "η": "eta", "λ": "lambda", "σ": "sigma", "ᾱ": "alpha_bar", "∞": "inf",
    "̄": "", "█": "#", "⁻": "^-",
}  # fmt: skip


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose usage errors are one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        one_line = " ".join(message.split())  # an argument may hold line breaks
        self.exit(EXIT_INPUT, f"{self.prog}: {one_line}; see `{self.prog} --help`\n")


def make_parser(prog: str, description: str, epilog: str | None = None) -> OneLineParser:
    """A parser with the flags that every command has: `--json` and `--debug`."""
    parser = OneLineParser(
        prog=program_name(prog),
        description=as_called(description),
        epilog=as_called(epilog or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object on standard output, everything else on standard error",
    )
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    return parser


def say(message: str) -> None:
    """Tell the user something on standard error, where it never mixes with a `--json` result."""
    try:
        print(as_called(message), file=sys.stderr, flush=True)
    except BrokenPipeError:
        raise
    except OSError:  # a full disk under standard error: what is done is done all the same
        pass


def run_program(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], Report],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, run and report; return the exit code.

    `main` returns the report: under `--json` it is printed as one object; otherwise its key
    `"summary"`, one or more lines that say where the result is, is printed.
    """
    let_output_be_plain()
    args = parser.parse_args(argv)
    # A terminated job deserves the same clean end as Ctrl-C: what is finished is kept.
    previous = signal.signal(signal.SIGTERM, _raise_keyboard_interrupt)
    try:
        _print_report(main(args), args.json)
    except InputError as error:
        return _fail(parser.prog, error, EXIT_INPUT, args)
    except VerificationError as error:
        return _fail(parser.prog, error, EXIT_VERIFICATION, args)
    except DeviceUnavailableError as error:
        return _fail(parser.prog, error, EXIT_DEVICE, args)
    except StoppedError as error:
        return _fail(parser.prog, error, EXIT_INTERRUPTED, args)
    except KeyboardInterrupt:
        return _fail(parser.prog, "interrupted", EXIT_INTERRUPTED, args)
    except MemoryError as error:
        message = f"too little memory ({error or 'allocation failed'}); ask for less at once"
        return _fail(parser.prog, message, EXIT_INPUT, args)
    except BrokenPipeError:
        _redirect_output_to_devnull(sys.stdout, sys.stderr)
        return EXIT_DONE
    except ModuleNotFoundError as error:
        missing = missing_module(error, parser.prog)
        if missing is None:
            return _fail_as_bug(parser.prog, error, args)
        return _fail(parser.prog, missing, EXIT_DEVICE, args)
    except OSError as error:
        if not isinstance(error.filename, str | bytes):
            return _fail_as_bug(parser.prog, error, args)
        # A file system's refusal is not a bug: a name that is too long, a folder without permission.
        message = (
            f"{os.fsdecode(error.filename)}: {error.strerror or error}; name another file, or make this one usable"
        )
        return _fail(parser.prog, message, EXIT_INPUT, args)
    except Exception as error:
        return _fail_as_bug(parser.prog, error, args)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return EXIT_DONE


def let_output_be_plain() -> None:
    """Let standard output and error write what their encoding has no characters for in the nearest plain ones."""
    codecs.register_error(_PLAIN_ERRORS, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_PLAIN_ERRORS)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


def _in_ascii(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    similar = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return similar or character.encode("ascii", "backslashreplace").decode()


def _redirect_output_to_devnull(*streams: TextIO) -> None:
    """The reader is gone: what is still buffered must not make the interpreter complain at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _print_report(report: Report, as_json: bool) -> None:
    summary = report.pop("summary", None) if as_json else as_called(report["summary"])
    text = json.dumps(report, allow_nan=False) if as_json else summary
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _redirect_output_to_devnull(sys.stdout)  # what is buffered would fail once more at exit
        raise InputError(
            f"standard output cannot be written ({error.strerror or error}), everything else is done; make room there"
        ) from error


def _raise_keyboard_interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail_as_bug(prog: str, error: Exception, args: argparse.Namespace) -> int:
    message = f"{type(error).__name__}: {error} (a bug: please report it with the output of --debug)"
    return _fail(prog, message, EXIT_BUG, args)


def _fail(prog: str, error: object, code: int, args: argparse.Namespace) -> int:
    if args.debug:
        traceback.print_exc()
    message = " ".join(str(error).split()) if code != EXIT_VERIFICATION else str(error)
    say(f"{prog}: {message}")
    return code
