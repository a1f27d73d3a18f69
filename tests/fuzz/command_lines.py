"""Every command of the project, found by its parser, and command lines for it that nobody would call reasonable."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from commands.program import OneLineParser
from tests.fuzz.outcome import Main

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("train", "export", "runtime", "benchmarks")

# What makes a command quick in the folder of `tests.fuzz.work_folder`; later flags of the same name win.
QUICK = {
    "train.run": "--data images.npz --steps 1 --batch-size 2 --num-samples 0 --num-train-timesteps 12 --device cpu",
    "train.fit_table": "--checkpoint ckpt --steps 2 --sampler ddim --spacing trailing --iterations 0 --batch-size 2 "
    "--objective teacher --pairs 2 --threads 1",
    "train.swiss_roll": "--steps 1",
    "train.binary": "--steps 1 --timesteps 3 --num-samples 2",
    "export.to_onnx": "--checkpoint ckpt",
    "export.to_openvino": "--onnx unet.onnx",
    "export.to_trt": "--onnx unet.onnx",
    "export.to_triton": "--engine unet.onnx",
    "export.mlp_to_onnx": "--checkpoint roll",
    "runtime.sample": "--num 3 --steps 2",
    "runtime.sample_bits": "--num 2",
    "runtime.gather": "samples",
    "runtime.sign": "unet.onnx --check junk.json",
    "export.convert": "ckpt",
    "export.inspect": "unet.onnx",
    "benchmarks.serve": "--engine unet.onnx --requests 2 --rounds 1 --steps 2",
    "benchmarks.load": "--engine none.onnx --seconds 0.1 --grace 0.1 --clients 1 --parts",
    "benchmarks.scale": "--engine none.onnx --rounds 1 --parts",
    "benchmarks.likelihood": "--data images.npz --split all --num 3 --evaluations 40 --batch-size 8",
    "benchmarks.quality": "--data images.npz --num 8 --steps 2 --samplers ddpm --seeds 2 --rounds 1",
    "benchmarks.report": "--quality junk.json",
    "benchmarks.compare": "--checkpoint ckpt --batch-sizes 1 --steps 2 --rounds 1 --peers nobody",
    "benchmarks.chain": "--engine unet.onnx --batch-sizes 2 --steps 2 --rounds 1",
    "benchmarks.guidance": "--checkpoint ckpt --batch-sizes 1 --rounds 1 --num 1 --steps 2",
    "benchmarks.kernels": "--shape 1 1 4 4 --threads 1 --rounds 1",
    "benchmarks.swiss_roll": "--num 4 --steps 2",
}

NUMBERS = (
    "-1", "0", "1", "2", "3", "4", "5", "7", "11", "12", "13", "999", "0.5", "-0.0", "1.5", "1e3", "1e-300", "5e-324",
    "nan", "inf", "-inf", "1e400", "0x10", "1_000", " 5 ", "٣", "²", "true", "none", "", "-", "--", "1,2", "3,1,0",
    "1e3,0", "4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616",
    "-9223372036854775809", "9" * 40, "9" * 5000,
)  # fmt: skip
WORDS = ("x", "", " ", "ddim", "ddpm", "train", "test", "train[:2]", "train+test", "digits", "é", "a\nb", "\udcff",
         "../x", "{}", "[]", "%s", "--", "-h", "$HOME", "x" * 300, "image")  # fmt: skip
PATHS = (
    "unet.onnx", "color.onnx", "swiss_roll.onnx", "heartbeat.onnx", "unet.xml", "unet.bin", "unet.xml.json", "ckpt",
    "roll", "bits", "images.npz", "images.npy", "states.npy", "floats.npz", "table.json", "betas.json", "picture.png",
    "pictures", "samples", "out", "out.onnx", "out.xml", "out.plan", "out.npy", "out.json", "out.png",
    "new/deep/out.onnx", "empty", "empty.onnx", "empty.xml", "empty.json", "empty.npz", "empty.png", "empty.npy",
    "junk.onnx", "junk.xml", "junk.json", "junk.npz", "junk.npy", "junk.png", "junk.plan", "folder.onnx",
    "folder.xml", "folder.json", "folder.npz", "folder.png", "empty_folder", "dangling.onnx", "loop.onnx", "nothing",
    "nothing.onnx", "nothing.json", "nothing.npz", ".", "..", "/", "~", "", "/dev/null",
    "/proc/self/mem", "/proc/self/environ", "unet.onnx/x", "x" * 300, f"{'x' * 300}.onnx", f"{'d/' * 600}x.onnx",
    "nul\0.onnx", "\udcff.onnx", "ünï.onnx", "a b.xml", "-x.onnx", "new\nline.onnx",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command: its name behind `python -m`, its entry, and its parser."""

    name: str
    main: Main
    parser: argparse.ArgumentParser


class _ParserFound(BaseException):
    pass


@cache
def commands() -> dict[str, Command]:
    """Every module of the project that ends in `run_program`, by the name of its parser."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "run_program(" not in text:
                continue
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            entry = next(name for name in ("run", "main") if re.search(rf"^def {name}\(\s*argv", text, re.MULTILINE))
            main = getattr(module, entry)
            parser = _parser_of(main)
            name = parser.prog.removeprefix("python -m ")
            found[name] = Command(name, main, parser)
    return found


def _parser_of(main: Main) -> argparse.ArgumentParser:
    parsers = []

    def catch(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None, namespace: Any = None) -> None:
        parsers.append(parser)
        raise _ParserFound

    with mock.patch.object(OneLineParser, "parse_args", catch):
        try:
            main([])
        except _ParserFound:
            return parsers[0]
    raise AssertionError(f"{main} parses nothing")


@st.composite
def command_lines(draw: Any, names: Sequence[str] | None = None) -> tuple[str, list[str]]:
    """A command's name, and arguments: a few of its flags with values that may be wrong, more of them right."""
    command = commands()[draw(st.sampled_from(sorted(names or commands())))]
    argv = QUICK.get(command.name, "").split()
    actions = [action for action in command.parser._actions if not isinstance(action, argparse._HelpAction)]
    for action in draw(st.lists(st.sampled_from(actions), max_size=4)):
        argv += _words(draw, action)
    if draw(st.integers(0, 9)) == 9:
        argv.insert(draw(st.integers(0, len(argv))), draw(st.sampled_from(WORDS + PATHS)))
    return command.name, argv


def _words(draw: Any, action: argparse.Action) -> list[str]:
    flag = [draw(st.sampled_from(action.option_strings))] if action.option_strings else []
    if action.nargs == 0:
        return flag
    count = action.nargs if isinstance(action.nargs, int) else draw(st.integers(1, 2)) if action.nargs else 1
    values = [draw(_values(action)) for _ in range(count)]
    if flag and count == 1 and draw(st.booleans()):
        return [f"{flag[0]}={values[0]}"]
    return flag + values


def _values(action: argparse.Action) -> st.SearchStrategy[str]:
    if action.choices is not None:
        right = [str(choice) for choice in action.choices]
        return st.sampled_from([*right, *right, *right, "x", ""])
    if action.type is Path:
        return st.sampled_from(PATHS)
    if action.type in (int, float):
        return st.sampled_from(NUMBERS)
    if action.type is None or action.type is str:
        return st.sampled_from(WORDS + PATHS)
    return st.sampled_from(NUMBERS + WORDS)
