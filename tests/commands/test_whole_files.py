"""Files appear whole or not at all."""

import os
import stat

import pytest

from commands.whole_files import whole_file, whole_folder, write_whole_text
from diffusion.errors import InputError


def test_the_file_appears_with_its_whole_content_and_usual_permissions(tmp_path):
    path = tmp_path / "new" / "unet.onnx"
    with whole_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert (temporary.parent, temporary.suffix) == (path.parent, ".onnx")
    assert path.read_text() == "half"
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert os.listdir(path.parent) == ["unet.onnx"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "unet.onnx"
    path.write_text("old")

    def fail() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["unet.onnx"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "stale").write_text("old")
    with whole_folder(path) as temporary:
        (temporary / "fresh").write_text("new")
        assert (path / "stale").exists()
    assert os.listdir(path) == ["fresh"]
    assert os.listdir(tmp_path) == ["model"]


def test_a_failing_folder_leaves_the_old_one(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "stale").write_text("old")

    def fail() -> None:
        with whole_folder(path) as temporary:
            (temporary / "fresh").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(path) == ["stale"]
    assert os.listdir(tmp_path) == ["model"]


def test_what_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="its folder cannot be written .*--out"):
        write_whole_text(tmp_path / "file" / "below", "text")
