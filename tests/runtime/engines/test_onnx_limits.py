"""Graphs are counted as they will run; `tests/corpus` has what is refused of whole files."""

from pathlib import Path

import onnx
import pytest

from diffusion.errors import InputError
from runtime.engines import onnx_limits
from runtime.engines.onnx_limits import check_limits
from tests.corpus.networks import _deep_ifs, _filled, _functions, _loop, _many, _recursive


def refusal(model: onnx.ModelProto) -> str:
    with pytest.raises(InputError) as caught:
        check_limits(Path("a.onnx"), model)
    return str(caught.value)


def test_loops_whose_rounds_are_known_and_few_are_taken():
    check_limits(Path("a.onnx"), _loop(onnx_limits.MAX_ROUNDS))
    assert "a loop of 65537 rounds" in refusal(_loop(onnx_limits.MAX_ROUNDS + 1))
    assert "no number of its rounds" in refusal(_loop(None))


def test_nodes_are_counted_with_functions_written_out(monkeypatch):
    monkeypatch.setattr(onnx_limits, "MAX_NODES", 16)
    check_limits(Path("a.onnx"), _many(15))
    assert "has 17 nodes, expected at most 16" in refusal(_many(16))
    check_limits(Path("a.onnx"), _functions(2, 3))  # 1 + 3 · (1 + 3)
    assert "has 21 nodes" in refusal(_functions(2, 4))
    assert "'f' that calls itself" in refusal(_recursive())


def test_branches_are_not_deep():
    check_limits(Path("a.onnx"), _deep_ifs(onnx_limits.MAX_DEPTH - 1))
    assert "more than 8 deep" in refusal(_deep_ifs(onnx_limits.MAX_DEPTH))


def test_what_is_computed_from_constants_is_added_up():
    check_limits(Path("a.onnx"), _filled(2**13, 2**13 - 1))
    assert "computes 268435460 bytes from constants alone" in refusal(_filled(2**13, 2**13))
