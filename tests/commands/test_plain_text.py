"""Output where the terminal has not all of Unicode: every command's help, and names that are no text."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys

import pytest

from commands.plain_text import let_output_be_plain

COMMANDS = [
    "train.run", "train.swiss_roll", "train.binary", "export.to_onnx", "export.to_openvino", "export.to_trt",
    "export.mlp_to_onnx", "runtime.sample", "runtime.sample_bits", "benchmarks.compare.__main__",
    "benchmarks.kernels", "benchmarks.likelihood.__main__", "benchmarks.quality.__main__",
    "benchmarks.swiss_roll", "benchmarks.gpu_check.command",
]  # fmt: skip


def ascii_output(monkeypatch: pytest.MonkeyPatch) -> io.TextIOWrapper:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", output)
    return output


def written(output: io.TextIOWrapper) -> str:
    assert isinstance(output.buffer, io.BytesIO)
    return output.buffer.getvalue().decode("ascii")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_in_ascii(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = ascii_output(monkeypatch)
    module = importlib.import_module(command)
    main = module.run if command == "train.run" else module.main
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "--json" in written(output)


def test_the_nearest_words(monkeypatch: pytest.MonkeyPatch) -> None:
    output = ascii_output(monkeypatch)
    let_output_be_plain()
    print("0 to T−1, 8.6,8.9,… N×C ≤ é ß \udcff 🎲")
    assert written(output) == "0 to T-1, 8.6,8.9,... NxC <= e \\xdf \\udcff \\U0001f3b2\n"


def test_a_program_with_such_a_terminal() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = [sys.executable, "-m", "export.to_trt", "--help"]
    done = subprocess.run(run, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"8.6,8.9,..." in done.stdout
