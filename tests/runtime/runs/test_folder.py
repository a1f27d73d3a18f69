"""A run's folder is claimed, and what an earlier run left in it is removed."""

from runtime.runs.folder import RunFolder


def test_overwriting_removes_the_pictures_of_a_run_and_no_others(tmp_path):
    RunFolder.claim(tmp_path, {"seed": 0}, ["[0-9]*.png"])
    for name in ("000000.png", "1000000.png", "3-best.png"):
        (tmp_path / name).write_bytes(b"")
    RunFolder.claim(tmp_path, {"seed": 1}, ["[0-9]*.png"], overwrite=True)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["3-best.png"]
