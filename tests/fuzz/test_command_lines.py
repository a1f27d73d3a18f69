"""Whatever is typed behind a command, it does it or says in one line why not."""

from __future__ import annotations

import shutil

from tests.fuzz.command_lines import QUICK, command_lines, commands
from tests.fuzz.outcome import run
from tests.fuzz.work_folder import copy_folder

# Of these a case takes seconds: they have their share in the long run alone.
SLOW = ("export.to_onnx", "export.to_trt", "benchmarks.compare", "benchmarks.serve", "benchmarks.load")
SERVER = "runtime.serve"  # it goes on until it is told to stop; tests/runtime/serve has its bad input


def test_a_command_line_is_obeyed_or_refused(fuzz, work_folder, tmp_path, pytestconfig):
    names = sorted(set(commands()) - {SERVER})
    if pytestconfig.getoption("--fuzz-examples") < 1000:
        names = [name for name in names if name not in SLOW]

    def check(case: tuple[str, list[str]]) -> None:
        name, argv = case
        shutil.rmtree(tmp_path / "case", ignore_errors=True)
        folder = copy_folder(work_folder, tmp_path / "case")
        run(commands()[name].main, argv, folder, seconds=6.0, grace=40.0).check()

    fuzz(command_lines(names), check, 0.25)


def test_every_command_is_found_and_has_a_quick_form():
    assert set(commands()) - set(QUICK) == {"benchmarks.gpu_check", "benchmarks.device", SERVER}
    assert set(QUICK) <= set(commands())
