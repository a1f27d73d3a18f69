"""The frame around every command: one-line errors, exit codes, `--json`, `--debug`, Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

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
)
from commands.missing_module import missing_module
from diffusion.errors import InputError

Report = dict[str, Any]


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose usage errors are one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_INPUT, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def make_parser(prog: str, description: str, epilog: str | None = None) -> OneLineParser:
    """A parser with the flags that every command has: `--json` and `--debug`."""
    parser = OneLineParser(
        prog=prog,
        description=description,
        epilog=epilog,
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
    print(message, file=sys.stderr, flush=True)


def run_program(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], Report],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, run and report; return the exit code.

    `main` returns the report: under `--json` it is printed as one object; otherwise its key
    `"summary"`, one or more lines that say where the result is, is printed.
    """
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
    except BrokenPipeError:
        _let_output_go_nowhere()
        return EXIT_DONE
    except ModuleNotFoundError as error:
        missing = missing_module(error, parser.prog.removeprefix("python -m "))
        if missing is None:
            return _fail(parser.prog, _bug(error), EXIT_BUG, args)
        return _fail(parser.prog, missing, EXIT_DEVICE, args)
    except Exception as error:
        return _fail(parser.prog, _bug(error), EXIT_BUG, args)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return EXIT_DONE


def _let_output_go_nowhere() -> None:
    """Nobody reads any more: what is still buffered must not make the interpreter complain at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _print_report(report: Report, as_json: bool) -> None:
    if as_json:
        report.pop("summary", None)
        print(json.dumps(report, allow_nan=False), flush=True)
    else:
        print(report["summary"], flush=True)


def _raise_keyboard_interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _bug(error: Exception) -> str:
    return f"{type(error).__name__}: {error} (a bug: please report it with the output of --debug)"


def _fail(prog: str, error: object, code: int, args: argparse.Namespace) -> int:
    if args.debug:
        traceback.print_exc()
    message = " ".join(str(error).split()) if code != EXIT_VERIFICATION else str(error)
    say(f"{prog}: {message}")
    return code
