"""A run's folder is claimed, and what an earlier run left in it is removed."""

import pytest

from diffusion.errors import InputError
from runtime.runs.folder import RunFolder


def test_overwriting_removes_the_pictures_of_a_run_and_no_others(tmp_path):
    RunFolder.claim(tmp_path, {"seed": 0}, ["[0-9]*.png"])
    for name in ("000000.png", "1000000.png", "3-best.png"):
        (tmp_path / name).write_bytes(b"")
    RunFolder.claim(tmp_path, {"seed": 1}, ["[0-9]*.png"], overwrite=True)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["3-best.png"]


def test_pictures_of_no_run_are_neither_removed_nor_mixed_with_ours(tmp_path):
    (tmp_path / "000007.png").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"000007\.png: is (in the way|of no run)"):
            RunFolder.claim(tmp_path, {"seed": 0}, ["[0-9]*.png"], overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["000007.png"]
