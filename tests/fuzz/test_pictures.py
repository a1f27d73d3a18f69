"""Pictures and arrays of every kind are taken as the table of conversions says, or refused in one line."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import strategies as st

from tests.fuzz.command_lines import QUICK, commands
from tests.fuzz.outcome import Outcome, run
from tests.fuzz.pictures import Bytes, array_files, picture_files

TRAIN = ("train.run", *QUICK["train.run"].split(), "--held-out", "1")
SAMPLE = ("runtime.sample", "--backend", "onnxruntime", "--steps", "2", "--format", "npy")
USES = (
    (*SAMPLE, "--engine", "unet.onnx", "--from-timestep", "5", "--x-init", "FILE"),
    (*SAMPLE, "--engine", "color.onnx", "--from-timestep", "5", "--x-init", "FILE"),
    (*SAMPLE, "--engine", "unet.onnx", "--invert", "--x-init", "FILE"),
    (*TRAIN, "--data", "FOLDER"),
    (*TRAIN, "--image-size", "4", "--data", "FOLDER"),
    (*TRAIN, "--image-size", "4", "--image-mode", "L", "--data", "FOLDER"),
    (*TRAIN, "--data", "FILE"),
    ("benchmarks.likelihood", "--num", "2", "--evaluations", "20", "--data", "FILE"),
    ("benchmarks.quality", *QUICK["benchmarks.quality"].split(), "--data", "FILE"),
)


@pytest.mark.parametrize(
    ("files", "share"), [(picture_files(), 0.15), (array_files(), 0.1)], ids=["pictures", "arrays"]
)
def test_a_file_is_taken_or_refused(fuzz, work_folder, tmp_path, files, share):
    def use(file: Bytes, words: tuple[str, ...]) -> Outcome:
        folder = tmp_path / "case"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "folder").mkdir(parents=True)
        for name in ("unet.onnx", "color.onnx"):
            os.link(work_folder / name, folder / name)
        (folder / file.name).write_bytes(file.content)
        os.link(folder / file.name, folder / "folder" / file.name)
        for path in sorted((work_folder / "pictures").iterdir())[:4]:
            os.link(path, folder / "folder" / path.name)
        named = {"FILE": file.name, "FOLDER": "folder"}
        return run(commands()[words[0]].main, [named.get(word, word) for word in words[1:]], folder)

    fuzz(st.tuples(files, st.sampled_from(USES)), lambda case: use(*case).check(), share)
