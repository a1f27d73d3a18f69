"""Files of JSON that somebody edited are read as they say, or refused in one line."""

from __future__ import annotations

import shutil

from tests.fuzz.command_lines import commands
from tests.fuzz.configurations import Edit, edits
from tests.fuzz.outcome import run
from tests.fuzz.work_folder import copy_folder


def test_an_edited_file_is_read_or_refused(fuzz, work_folder, tmp_path):
    def check(edit: Edit) -> None:
        shutil.rmtree(tmp_path / "case", ignore_errors=True)
        folder = copy_folder(work_folder, tmp_path / "case")
        edit.apply(folder)
        run(commands()[edit.argv[0]].main, edit.argv[1:], folder).check()

    fuzz(edits(work_folder), check, 0.25)
