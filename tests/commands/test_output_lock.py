"""One writer for one file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from commands.output_lock import check_room, sole_writer
from diffusion.errors import InputError


def test_the_second_writer_is_refused_and_the_next_is_not(tmp_path: Path) -> None:
    out = tmp_path / "engines" / "unet.plan"
    with sole_writer(out):
        with (
            pytest.raises(InputError, match=f"another program is writing it .process {os.getpid()}."),
            sole_writer(out),
        ):
            pass
        with sole_writer(out.with_name("other.plan")):
            pass
    assert list(out.parent.iterdir()) == []
    with sole_writer(out):
        pass


def test_a_writer_that_died_leaves_no_lock(tmp_path: Path) -> None:
    out = tmp_path / "unet.plan"

    code = f"""
import os
from pathlib import Path
from commands.output_lock import sole_writer
with sole_writer(Path({str(out)!r})):
    os._exit(7)"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 7
    assert [path.name for path in tmp_path.iterdir()] == [".unet.plan.lock"]
    with sole_writer(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="its folder cannot be written .* another place with --out"),
        sole_writer(tmp_path / "file" / "unet.plan"),
    ):
        pass


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_room(tmp_path / "unet.plan", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 4 * 10**6))
    with pytest.raises(InputError, match="needs about 5 MB, and 4 MB are left on that disk; make room"):
        check_room(tmp_path / "unet.plan", 5 * 10**6)
