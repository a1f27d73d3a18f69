"""The console script: picks the command, and imports nothing of the others."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from ddpm_rt.command_names import COMMANDS, Command, speak_as_console_script
from ddpm_rt.own_packages import PACKAGES, import_own_packages

# As commands.errors has it, which is not imported for help.
_EXIT_DONE, _EXIT_INPUT, _EXIT_DEVICE = 0, 2, 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments begin with; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in ([], ["-h"], ["--help"]):
        print(_help(COMMANDS))
        return _EXIT_DONE
    if arguments == ["--version"]:
        print(f"ddpm-rt {_version()}")
        return _EXIT_DONE
    for command in COMMANDS:
        if tuple(arguments[: len(command.words)]) == command.words:
            try:
                entry = _entry(command)
            except ModuleNotFoundError as error:
                missing = importlib.import_module("commands.missing_module").missing_module(error, command.module)
                if missing is None:
                    raise
                print(f"ddpm-rt {' '.join(command.words)}: {missing}", file=sys.stderr)
                return _EXIT_DEVICE
            return entry(arguments[len(command.words) :])
    return _not_a_command(arguments)


def _entry(command: Command) -> Callable[[list[str]], int]:
    import_own_packages(*PACKAGES)
    speak_as_console_script()
    module, _, function = command.entry.partition(":")
    entry: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return entry


def _not_a_command(arguments: list[str]) -> int:
    group = [command for command in COMMANDS if len(command.words) > 1 and command.words[0] == arguments[0]]
    if group and arguments[1:] in (["-h"], ["--help"]):
        print(_help(group))
        return _EXIT_DONE
    if group:
        expected = "|".join(command.words[1] for command in group)
        found = f"found {arguments[1]!r}, " if len(arguments) > 1 else ""
        message = f"ddpm-rt {arguments[0]}: {found}expected {expected}; see `ddpm-rt --help`"
    else:
        expected = ", ".join(dict.fromkeys(command.words[0] for command in COMMANDS))
        message = f"ddpm-rt: no command {arguments[0]!r}, expected {expected} or --version; see `ddpm-rt --help`"
    print(message, file=sys.stderr)
    return _EXIT_INPUT


def _help(commands: Sequence[Command]) -> str:
    lines = [f"  ddpm-rt {' '.join(command.words):18}{command.summary}" for command in commands]
    return "\n".join(
        [
            "usage: ddpm-rt COMMAND [FLAGS]",
            "",
            "A trained DDPM goes in, the fastest sampler that provably matches it comes out.",
            "",
            "commands:",
            *lines,
            "",
            "ddpm-rt COMMAND --help lists the flags of one, ddpm-rt --version prints the version.",
            "Each runs with no flags in the folder that the one before it ran in.",
        ]
    )


def _version() -> str:
    from importlib import metadata

    return metadata.version("ddpm-rt")
