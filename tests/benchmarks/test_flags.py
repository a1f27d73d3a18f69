"""Numbers and names that no measurement can use are refused before it begins."""

import pytest

from benchmarks.chain import main as chain
from benchmarks.compare.__main__ import main as compare
from benchmarks.kernels import main as kernels
from benchmarks.swiss_roll import main as swiss_roll


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (chain, "--rounds 0", "found 0, expected at least 1"),
        (chain, "--rounds -1", "found -1, expected at least 1"),
        (chain, "--steps 0", "found 0, expected at least 1"),
        (chain, "--batch-sizes 2 -1", "found -1, expected at least 1"),
        (chain, "--steps 1.5", "found '1.5', expected a whole number"),
        (chain, f"--steps {'9' * 5000}", f"found '{'9' * 40}…', expected a whole number"),
        (compare, "--rounds 0", "argument --rounds: found 0, expected at least 1"),
        (compare, "--steps 0", "argument --steps: found 0, expected at least 1"),
        (compare, "--batch-sizes 1 0", "argument --batch-sizes: found 0, expected at least 1"),
        (compare, "--threads -1", "argument --threads: found -1, expected at least 1"),
        (kernels, "--shape 1 1 0 4", "found 0, expected at least 1"),
        (swiss_roll, "--seed -1", "found -1, expected 0 to 2^64 - 1"),
        (swiss_roll, f"--seed {2**64}", f"found {2**64}, expected 0 to 2^64 - 1"),
        (swiss_roll, "--num 0", "found 0, expected at least 1"),
        (swiss_roll, "--steps -3", "found -3, expected at least 1"),
        (chain, "--out /proc/self/mem", "'/proc/self/mem' cannot be written ("),
        (kernels, "--out /proc/none/report.json", "'/proc/none/report.json' cannot be written ("),
        (swiss_roll, "--out /", "found the folder '/', expected the name of a file"),
        (swiss_roll, f"--out {'n' * 300}/report.json", "File name too long"),
        (swiss_roll, "--picture roll", "found 'roll', expected the name of a file that ends in .png"),
        (swiss_roll, "--picture roll.onnx", "found 'roll.onnx', expected the name of a file that ends in .png"),
    ],
)
def test_what_cannot_be_is_refused(main, words, message, capsys):
    with pytest.raises(SystemExit) as refused:
        main(words.split())
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
