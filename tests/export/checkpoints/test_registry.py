"""What holds for every format, and what flags go with which source."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from diffusion.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.process import Process, SampleShape
from export import ExportRequest, source
from export.checkpoints.registry import FORMATS
from tests.checkpoints import save_tiny_checkpoint
from tests.gaussian import GaussianNetwork


def test_flags_of_one_name_are_one_flag() -> None:
    by_name: dict[str, set[Any]] = {}
    for kind in FORMATS:
        assert len({flag.name for flag in kind.flags}) == len(kind.flags)
        for flag in kind.flags:
            by_name.setdefault(flag.name, set()).add(flag)
    assert {name: flags for name, flags in by_name.items() if len(flags) > 1} == {}
    assert "model" not in by_name


def test_published_models_have_names_of_their_own_and_flags_that_are_taken() -> None:
    names = Counter(name for kind in FORMATS for name in kind.models)
    assert [name for name, times in names.items() if times > 1] == []
    for kind in FORMATS:
        known = {flag.name: flag for flag in kind.flags}
        for flags in kind.models.values():
            for name, value in flags.items():
                assert known[name].value(value) == value


def test_flags_are_for_files_of_other_projects(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    process = Process(SampleShape(1, 4, 4), NoiseSchedule.make("linear", 50))
    onnx = GaussianNetwork(process, 0.2, 0.5).save_onnx(tmp_path / "unet.onnx")
    for request, says in (
        ({"checkpoint": folder}, "--image_size is for the file of another project, a folder describes its network"),
        ({"onnx": onnx}, "--image_size is for the checkpoint of another project; leave it out"),
    ):
        with pytest.raises(InputError, match=says):
            source.check_source(ExportRequest(tmp_path / "unet.xml", checkpoint_flags={"image_size": 8}, **request))
