"""Which batches an engine takes, in our words and in trtexec's."""

from __future__ import annotations

import argparse

import pytest

from diffusion.errors import InputError
from export.tensorrt_flags import Shapes, add_batch_flags, batch_profiles, given_shapes, parse_shapes
from runtime.formats.batch_profile import BatchProfile


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_batch_flags(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "expected", "static"),
    [
        ([], [(1, 8, 64)], False),
        (["--min-batch", "2", "--opt-batch", "4", "--max-batch", "6"], [(2, 4, 6)], False),
        (["--minShapes=x:2x3x8x8,t:2", "--optShapes=x:4x3x8x8", "--maxShapes=t:6"], [(2, 4, 6)], False),
        (["--max-batch", "4"], [(1, 4, 4)], False),
        (["--min-batch", "100"], [(100, 100, 100)], False),
        (["--opt-batch", "200"], [(1, 200, 200)], False),
        (["--min-batch", "16"], [(16, 16, 64)], False),
        (["--profile", "1,1,4", "--profile", "8,64,256"], [(1, 1, 4), (8, 64, 256)], False),
        (["--batch", "16"], [(16, 16, 16)], True),
        (["--shapes=x:16x3x32x32,t:16"], [(16, 16, 16)], True),
    ],
)
def test_flags(arguments: list[str], expected: list[tuple[int, int, int]], static: bool) -> None:
    profiles, found = batch_profiles(parse(*arguments))
    assert [(profile.min, profile.opt, profile.max) for profile in profiles] == expected
    assert found == static


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--min-batch", "9", "--max-batch", "8"], "expected min ≤ opt ≤ max"),
        (["--min-batch", "0"], "expected min ≤ opt ≤ max from 1"),
        (["--max-batch", "3000000000"], "to 2147483647"),
        (["--batch", "4", "--max-batch", "8"], "--batch and --min-batch, --opt-batch or --max-batch exclude"),
        (["--profile", "1,2,3", "--batch", "4"], "--batch and --profile exclude"),
        (["--max-batch", "4", "--maxShapes=t:4"], "say the same thing"),
        (["--batch", "4", "--shapes=t:4"], "say the same thing"),
    ],
)
def test_flags_that_do_not_fit(arguments: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        batch_profiles(parse(*arguments))


@pytest.mark.parametrize("text", ["8x3x8x8", "x:8x3x?x8", "x:8x3x8x8,t:4", "x:", "", "x:8x-3"])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        parse_shapes(text)


@pytest.mark.parametrize("text", ["1,2", "1,2,x", "3,2,1"])
def test_profiles_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentError, match="expected min"):
        parse("--profile", text)


def test_shapes_are_held_against_the_network() -> None:
    chw = {"x": [3, 8, 8], "t": []}
    shapes = given_shapes(parse("--maxShapes=x:4x3x8x8,t:4"))
    assert list(shapes) == ["--maxShapes"]
    shapes["--maxShapes"].check("--maxShapes", chw)
    with pytest.raises(InputError, match="--shapes: x is 4x3x9x9, expected Nx3x8x8"):
        Shapes({"x": (4, 3, 9, 9)}).check("--shapes", chw)
    with pytest.raises(InputError, match="no input 'sample', expected x and t"):
        Shapes({"sample": (4, 3, 8, 8)}).check("--shapes", chw)


def test_a_profile_in_a_sidecar() -> None:
    assert BatchProfile(1, 8, 64).to_json() == {"min": 1, "opt": 8, "max": 64}
