"""What the commands are called: `ddpm-rt export onnx` is `python -m export.to_onnx`."""

from __future__ import annotations

import re
from typing import NamedTuple


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
    _command("export onnx", "export.to_onnx", "a checkpoint folder to an ONNX file"),
    _command("export openvino", "export.to_openvino", "a checkpoint folder or an ONNX file to an engine for the CPU"),
    _command("export trt", "export.to_trt", "a checkpoint folder or an ONNX file to a TensorRT plan"),
    _command("sample", "runtime.sample", "an engine and a seed to images"),
    _command("bench compare", "benchmarks.compare", "speed beside diffusers", within=".__main__"),
    _command("bench likelihood", "benchmarks.likelihood", "bits/dim through any engine", within=".__main__"),
    _command("bench quality", "benchmarks.quality", "distance to the data against network calls", within=".__main__"),
    _command("bench kernels", "benchmarks.kernels", "the compiled step beside PyTorch's"),
    _command("bench chain", "benchmarks.chain", "what the chain costs beyond its network calls"),
)
_WORDS = {command.module: " ".join(("ddpm-rt", *command.words)) for command in COMMANDS}
_SPELLED = re.compile(r"python -m (" + "|".join(re.escape(module) for module in _WORDS) + r")(?![\w.])")
_as_console_script = False


def speak_as_console_script() -> None:
    """From now on, help and messages name the commands as the user called this one."""
    global _as_console_script
    _as_console_script = True


def as_called(text: str) -> str:
    """A text that says `python -m export.to_onnx`, in the spelling of whoever runs this process."""
    return _SPELLED.sub(lambda match: _WORDS[match.group(1)], text) if _as_console_script else text


def program_name(module: str) -> str:
    """What usage and errors of a command begin with: `runtime.sample`, or `ddpm-rt sample`."""
    return _WORDS.get(module.removeprefix("python -m "), module) if _as_console_script else module
