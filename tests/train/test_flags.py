"""What training takes is what the measurements take, and no error about data advises a flag that there is not."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from pathlib import Path

import pytest

from benchmarks.likelihood import __main__ as likelihood
from benchmarks.quality import __main__ as quality
from commands.program import make_parser
from diffusion.errors import InputError
from runtime.sample_flags import sample_parser
from train.datasets import DataRequest
from train.flags import add_data_flags, data_request
from train.run import make_train_parser

ROOT = Path(__file__).parents[2]
# Every file that speaks of data to somebody who may be running any of these commands.
SPEAKERS = (
    "datasets", "digits", "folder_listing", "hugging_face", "image_folder", "image_set", "npz_images",
)  # fmt: skip


def parser_of(command: object, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that a benchmark makes and runs."""
    found: list[argparse.ArgumentParser] = []

    def keep(parser: argparse.ArgumentParser, *_: object) -> int:
        found.append(parser)
        return 0

    monkeypatch.setattr(command, "run_program", keep)
    command.main([])  # type: ignore[attr-defined]
    return found[0]


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def data_flags() -> set[str]:
    plain = make_parser("plain", "")
    before = flags_of(plain)
    add_data_flags(plain, "", "")
    return flags_of(plain) - before


def spoken(source: Path | str) -> set[str]:
    """The flags in the texts of a file or of code, documentation left out."""
    tree = ast.parse(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    ]
    return {flag for text in texts for flag in re.findall(r"--[a-z][a-z-]+", text)}


def test_the_measurements_take_what_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"--data", "--split", "--image-size", "--image-mode", "--image-column", "--levels"} <= data_flags()
    for command in (likelihood, quality):
        flags = flags_of(parser_of(command, monkeypatch))
        assert data_flags() <= flags
        assert "--allow-pickle" in flags
    assert data_flags() <= flags_of(make_train_parser())


def test_no_error_about_data_advises_a_flag_that_a_command_lacks() -> None:
    assert {"--image-size", "--image-mode", "--held-out", "--levels", "--split"} <= {
        flag for name in SPEAKERS for flag in spoken(ROOT / "train" / f"{name}.py")
    }
    for name in SPEAKERS:  # labels are read only where --classes asks for them
        assert spoken(ROOT / "train" / f"{name}.py") <= data_flags() | {"--classes"}, name
    for function in (add_data_flags, data_request):
        assert spoken(inspect.getsource(function)) <= data_flags()


def test_the_likelihood_and_quality_speak_of_their_own_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    for command, folder in ((likelihood, "likelihood"), (quality, "quality")):
        flags = flags_of(parser_of(command, monkeypatch))
        for path in (ROOT / "benchmarks" / folder).glob("*.py"):
            assert spoken(path) <= flags, path


def test_sampling_speaks_of_its_own_flags() -> None:
    assert spoken(ROOT / "runtime" / "initial_states.py") <= flags_of(sample_parser())


def test_what_was_parsed_is_asked_for() -> None:
    parser = make_parser("plain", "")
    add_data_flags(parser, "digits", "train")
    assert data_request(parser.parse_args([]), "digits") == DataRequest("digits")
    words = ["--data", "d", "--split", "s", "--image-column", "c", "--image-size", "8", "--image-mode", "L"]
    words += ["--levels", "17", "--held-out", "3"]
    assert data_request(parser.parse_args(words), "digits", held_out_split="t") == DataRequest(
        "d", "s", "c", 8, "L", 17, 3, "t"
    )
    for words in (["--levels", "1"], ["--image-size", "0"], ["--held-out", "-1"]):
        with pytest.raises(InputError, match=f"{words[0]} is {words[1]}, expected a whole number of at least"):
            data_request(parser.parse_args(words), "digits")
