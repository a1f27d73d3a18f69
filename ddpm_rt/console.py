"""The console script `ddpm-rt`: its commands, their names in messages, and which one to run; imports none of them."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ddpm_rt.own_packages import PACKAGES, import_own_packages

# As commands.errors has it, which is not imported for help.
_EXIT_DONE, _EXIT_INPUT, _EXIT_DEVICE, _EXIT_INTERRUPTED = 0, 2, 4, 130


class Command(NamedTuple):
    """A command of `ddpm-rt`.

    Attributes:
        words: as typed after `ddpm-rt`.
        module: which `python -m` runs.
        entry: where its function is, which takes the arguments and returns the exit code.
        summary: one line of help.
    """

    words: tuple[str, ...]
    module: str
    entry: str
    summary: str


def _command(words: str, module: str, summary: str, function: str = "main", within: str = "") -> Command:
    return Command(tuple(words.split()), module, f"{module}{within}:{function}", summary)


COMMANDS = (
    _command("train", "train.run", "images to a checkpoint folder, which diffusers loads, too", function="run"),
    _command("fit-table", "train.fit_table", "a sampler's table of few calls, fitted to a checkpoint", function="run"),
    _command("export onnx", "export.to_onnx", "a checkpoint folder to an ONNX file"),
    _command("export openvino", "export.to_openvino", "a checkpoint folder or an ONNX file to an engine for the CPU"),
    _command("export trt", "export.to_trt", "a checkpoint folder or an ONNX file to a TensorRT plan"),
    _command("export triton", "export.to_triton", "an engine to a model repository of Triton Inference Server"),
    _command("convert", "export.convert", "a checkpoint of another project to a folder that diffusers loads"),
    _command("inspect", "export.inspect", "what a checkpoint, a network, an engine, a table or a run is"),
    _command("sample", "runtime.sample", "an engine and a seed to images"),
    _command("gather", "runtime.gather", "the shards of a large run to one .npz file"),
    _command("sign", "runtime.sign", "an engine or a table with a key, for --require-signature"),
    _command("serve", "runtime.serve", "an engine as an HTTP service", within=".__main__"),
    _command("bench compare", "benchmarks.compare", "speed beside diffusers", within=".__main__"),
    _command("bench likelihood", "benchmarks.likelihood", "bits/dim through any engine", within=".__main__"),
    _command("bench quality", "benchmarks.quality", "distance to the data against network calls", within=".__main__"),
    _command("bench report", "benchmarks.report", "one page on one model, from those results", within=".__main__"),
    _command("bench kernels", "benchmarks.kernels", "the compiled step beside PyTorch's"),
    _command("bench chain", "benchmarks.chain", "what the chain costs beyond its network calls"),
    _command("bench serve", "benchmarks.serve", "slots of the service against static batches", within=".__main__"),
    _command("bench load", "benchmarks.load", "the service under load over HTTP", within=".__main__"),
    _command("bench guidance", "benchmarks.guidance", "the cost of guidance, and digits that were asked for"),
)
_WORDS = {command.module: " ".join(("ddpm-rt", *command.words)) for command in COMMANDS}
_SPELLED = re.compile(r"python -m (" + "|".join(re.escape(module) for module in _WORDS) + r")(?![\w.])")
_as_console_script = False


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
                missing = importlib.import_module("commands.errors").missing_module(error, command.module)
                if missing is None:
                    raise
                print(f"ddpm-rt {' '.join(command.words)}: {missing}", file=sys.stderr)
                return _EXIT_DEVICE
            except KeyboardInterrupt:  # while modules are imported; the command itself answers it later
                print(f"ddpm-rt {' '.join(command.words)}: interrupted", file=sys.stderr)
                return _EXIT_INTERRUPTED
            return entry(arguments[len(command.words) :])
    return _not_a_command(arguments)


def as_called(text: str) -> str:
    """A text that says `python -m export.to_onnx`, in the spelling of whoever runs this process."""
    return _SPELLED.sub(lambda match: _WORDS[match.group(1)], text) if _as_console_script else text


def program_name(module: str) -> str:
    """What usage and errors of a command begin with: `runtime.sample`, or `ddpm-rt sample`."""
    return _WORDS.get(module.removeprefix("python -m "), module) if _as_console_script else module


def _entry(command: Command) -> Callable[[list[str]], int]:
    global _as_console_script
    import_own_packages(*PACKAGES)
    _as_console_script = True  # from now on, help and messages name the commands as the user called this one
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
