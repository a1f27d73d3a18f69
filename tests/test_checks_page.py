"""docs/what-is-checked.md against the code: what it names exists, and the numbers it gives are those of the code."""

from pathlib import Path

import pytest

from diffusion.conditioning import MAX_ROUNDING_ERROR
from export import onnx_check
from runtime.engines.agreement import ON_GPU
from runtime.engines.trajectories import NUM_STEPS, NUM_TIMESTEPS
from runtime.engines.verification import MAX_ABOVE_MEDIAN
from runtime.formats.golden import GATE_BATCHES
from runtime.formats.precision import ENGINE_PRECISIONS, PRECISIONS
from tests.test_equations_page import definitions, table_rows

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "what-is-checked.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = list(table_rows(TEXT))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"line {row.line}")
def test_names_are_defined_in_their_files(row):
    assert row.names
    assert row.files
    missing = [file for file in row.files if not (ROOT / file).is_file()]
    assert not missing, f"{PAGE.name}:{row.line}: no such file"
    nowhere = [name for name in row.names if not any(name in definitions(file) for file in row.files)]
    assert not nowhere, f"{PAGE.name}:{row.line}: defined in none of {row.files}"
    needless = [file for file in row.files if not definitions(file) & set(row.names)]
    assert not needless, f"{PAGE.name}:{row.line}: defines none of {row.names}"


def row_of(name: str) -> str:
    return next(line for line in TEXT.splitlines() if line.startswith("|") and f"`{name}`" in line)


def short(number: float) -> str:
    """As people write it: 1e-4, not 0.0001."""
    mantissa, _, exponent = f"{number:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def test_tolerances_are_those_of_the_code():
    row = row_of("PRECISIONS")
    for precision in ENGINE_PRECISIONS:
        assert f"{precision} {short(PRECISIONS[precision].tolerance)}" in row
    assert MAX_ABOVE_MEDIAN == 2.0
    assert "twice the median" in row
    assert f"{NUM_TIMESTEPS} timesteps" in row
    assert f"chain of {NUM_STEPS} steps" in row
    assert f"{short(onnx_check.TOLERANCE)} for each sample" in row_of("TOLERANCE")


def test_those_of_the_gpu_and_of_openvino():
    row = row_of("ON_GPU")
    assert f"fp32 {short(ON_GPU['fp32'])}, fp16 {short(ON_GPU['fp16'])}" in row
    assert ON_GPU["bf16"] == ON_GPU["int8"]
    assert f"bf16 and int8 {short(ON_GPU['bf16'])}" in row
    assert f"ONNX Runtime on the CPU, {short(PRECISIONS['fp32'].tolerance)};" in TEXT


def test_batches_and_rounding():
    largest, middle, smallest = GATE_BATCHES
    assert f"batches of {largest}, {middle} and {smallest}" in TEXT
    assert f"at most {MAX_ROUNDING_ERROR}," in row_of("MAX_ROUNDING_ERROR")


def test_every_file_that_compares_is_on_the_page():
    """A new gate is a file that raises VerificationError, or that calls one that does."""
    listed = {file for row in ROWS for file in row.files}
    gates = {
        str(path.relative_to(ROOT))
        for folder in ("export", "runtime/engines")
        for path in (ROOT / folder).glob("*.py")
        if "def verify" in (text := path.read_text(encoding="utf-8")) or "def find_agreement" in text
    }
    assert {"export/onnx_check.py", "runtime/engines/agreement.py"} <= gates
    assert gates <= listed
