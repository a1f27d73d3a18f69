"""The frame around every command: one-line errors, exit codes, `--json`, `--debug`, signals, plain terminals."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import json
import os
import re
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO, cast

from commands.errors import EXIT_BUG, EXIT_DONE, EXIT_INPUT, EXIT_VERIFICATION, StoppedError, exit_code, user_error
from commands.signals import interrupted_code, interruptions, nothing_ends
from ddpm_rt.console import as_called, program_name
from diffusion.errors import InputError

Report = dict[str, Any]

_LONGEST_WORD = 400  # a name has 255 bytes at most
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
        one_line = _shortened(" ".join(message.split()))  # an argument may hold line breaks
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
    with contextlib.suppress(OSError):  # nobody reads it, or its disk is full: what is done is done all the same
        print(as_called(message), file=sys.stderr, flush=True)


def run_program(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], Report],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, run and report; return the exit code.

    `main` returns the report: under `--json` it is printed as one object; otherwise its key
    `"summary"`, one or more lines that say where the result is, is printed.
    """
    open_standard_streams()
    let_output_be_plain()
    if any("\0" in word for word in argv or ()):  # which only a program can give that calls this one
        parser.error("an argument holds the character NUL, which no name has; leave it out")
    args = parser.parse_args(argv)
    with contextlib.redirect_stderr(cast(TextIO, _LastingStream(sys.stderr))), interruptions():
        try:
            return _run(parser, main, args)
        except KeyboardInterrupt:  # once more, as the first was said
            return interrupted_code()


def _run(
    parser: argparse.ArgumentParser, main: Callable[[argparse.Namespace], Report], args: argparse.Namespace
) -> int:
    prog = parser.prog
    try:
        return _print_report(main(args), args.json)
    except StoppedError as error:
        return _fail(prog, error, interrupted_code(), args)
    except KeyboardInterrupt:
        return _fail(prog, "interrupted", interrupted_code(), args)
    except Exception as error:
        found = user_error(error, prog)
        if found is not None:
            return _fail(prog, _by_flags(str(found), parser), exit_code(found), args)
        message = f"{type(error).__name__}: {error} (a bug: please report it with the output of --debug)"
        return _fail(prog, message, EXIT_BUG, args)


def _by_flags(message: str, parser: argparse.ArgumentParser) -> str:
    """The message, with flags for Python's arguments: --batch-size for `batch_size`, --device cpu for `device=cpu`."""
    flags = {action.dest: max(action.option_strings, key=len) for action in parser._actions if action.option_strings}

    def flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in flags:
            return found[0]
        return flags[name] if value in (None, "True") else f"{flags[name]} {value}"

    return re.sub(r"`(\w+)(?:=([^`]+))?`", flag, message)


class _LastingStream:
    """Standard error that a run outlives: where it cannot be written, as nobody reads it, messages alone are lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._lasting():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lasting():
            self._stream.flush()

    @contextlib.contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            _redirect_output_to_devnull(self._stream)  # for what C libraries and children write, too
        except OSError:  # a full disk, where there may be room later
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_standard_streams() -> None:
    """Let closed standard streams be `/dev/null`: the next file opened would get the number, and the messages."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            if nowhere != number:
                os.close(nowhere)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


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


def _redirect_output_to_devnull(stream: TextIO) -> None:
    """The reader is gone: what is still buffered must not make the interpreter complain at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _print_report(report: Report, as_json: bool) -> int:
    summary = report.pop("summary", None) if as_json else as_called(report["summary"])
    text = json.dumps(report, allow_nan=False) if as_json else summary
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _redirect_output_to_devnull(sys.stdout)  # everything is done
    except OSError as error:
        _redirect_output_to_devnull(sys.stdout)  # what is buffered would fail once more at exit
        raise InputError(
            f"standard output cannot be written ({error.strerror or error}), everything else is done; make room there"
        ) from error
    return EXIT_DONE


def _shortened(line: str) -> str:
    """A line without words of thousands of characters, which somebody may have given for a name or a number."""
    return re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda match: f"{match[0][:100]}…{match[0][-100:]}", line)


def _fail(prog: str, error: object, code: int, args: argparse.Namespace) -> int:
    with nothing_ends():  # a second Ctrl-C would cut off what the first one is answered with
        if args.debug:
            traceback.print_exc()
        message = str(error) if code == EXIT_VERIFICATION else _shortened(" ".join(str(error).split()))
        say(f"{prog}: {message}")
    return code
