"""What a report says of where it was made."""

import shutil
import subprocess

import pytest

from benchmarks import measurement


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_our_checkout_and_no_other(tmp_path, monkeypatch):
    """Installed into an environment inside somebody else's repository, we have none."""

    def git(*words: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@t")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "--message", "theirs")
    monkeypatch.setattr(measurement, "_ROOT", tmp_path)
    of_the_repository = measurement.commit()
    assert of_the_repository is not None
    assert len(of_the_repository) == 40
    (tmp_path / "environment").mkdir()
    monkeypatch.setattr(measurement, "_ROOT", tmp_path / "environment")
    assert measurement.commit() is None
