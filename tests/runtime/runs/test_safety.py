"""Runs that are killed, disks that are full, folders that are not what they say: nothing finished is lost or mixed."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.process import SampleShape
from runtime.formats.digest import sealed_text
from runtime.formats.run_manifest import RunManifest
from runtime.runs import files
from runtime.runs.files import FORMATS
from runtime.sample import main
from tests.gaussian import GaussianNetwork
from tests.runtime.gaussian_folder import PROCESS

ROOT = Path(__file__).parents[3]
RUN = ["--num", "5", "--batch-size", "2", "--steps", "2", "--backend", "onnxruntime"]


class Killed(BaseException):
    """As a signal that cannot be caught."""


@pytest.fixture
def killing(monkeypatch):
    """Ends the run at its n-th call of what writes: samples, their way to the disk, names that appear or go."""
    left = [-1]

    def kills(owner, name, counts=lambda *arguments: True):
        of_owner = getattr(owner, name)

        def counted(*arguments, **options):
            if counts(*arguments):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
            return of_owner(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    kills(files, "_write_at")
    kills(os, "fdatasync")
    kills(os, "fsync")
    kills(Path, "replace")
    kills(Path, "unlink", lambda path, **options: "partial" in path.name)

    def set_to(count):
        left[0] = count

    return set_to


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("format_", FORMATS)
def test_a_run_killed_anywhere_is_resumed_to_the_same(folder, killing, format_):
    assert main([*RUN, "--format", format_, "--out", "whole"]) == 0
    for count in range(1000):
        out = f"part{count}"
        killing(count)
        try:
            assert main([*RUN, "--format", format_, "--out", out]) == 0
            ended = True
        except Killed:
            ended = False
        killing(-1)
        assert main([*RUN, "--format", format_, "--out", out, "--resume"]) == 0
        assert tree(folder / out) == tree(folder / "whole")
        if ended:
            assert count > 0, "nothing was ever killed"
            return
    pytest.fail("the run never ended")


def test_resume_begins_where_there_is_nothing(folder, capsys):
    Path("empty").mkdir()
    Path("empty/.run.json.lock").touch()
    assert main([*RUN, "--format", "npy", "--out", "whole"]) == 0
    for out in ("empty", "absent"):
        capsys.readouterr()
        assert main([*RUN, "--format", "npy", "--out", out, "--resume"]) == 0
        assert f"{out}: holds no finished samples to go on from; beginning with the first" in capsys.readouterr().err
        assert tree(folder / out) == tree(folder / "whole")


def test_resume_never_takes_what_is_not_its_own(folder, capsys):
    Path("samples").mkdir()
    for name in ("grid.png", "samples.partial.npy"):
        Path("samples", name).write_text("mine")
        assert main([*RUN, "--resume"]) == 2
        assert f"{name}: is in the way" in capsys.readouterr().err
        assert tree(folder / "samples") == {name: b"mine"}
        Path("samples", name).unlink()
    # A finished run is finished, again and again; with its result gone there is nothing to go on from.
    assert main(RUN) == 0
    before = tree(folder / "samples")
    assert main([*RUN, "--resume"]) == 0
    assert tree(folder / "samples") == before
    Path("samples/grid.png").unlink()
    assert main([*RUN, "--resume"]) == 2
    assert "samples.partial.npy: is missing, so there is nothing to resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: os.truncate(path, 128 + 4 * 64 - 1), "bytes, expected at least"),
        (lambda path: os.truncate(path, 20), "cannot be read"),
        (lambda path: os.truncate(path, 0), "cannot be read"),
        (lambda path: path.write_bytes(b"junk" * 100), "cannot be read"),
        (lambda path: np.save(path, np.zeros((5, 8, 8, 1), np.int8)), "holds int8 (5, 8, 8, 1), expected uint8"),
        (lambda path: np.save(path, np.zeros((4, 8, 8, 1), np.uint8)), "holds uint8 (4, 8, 8, 1), expected"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_what_a_killed_run_left_is_checked(folder, killing, capsys, damage, says):
    killing(16)
    with pytest.raises(Killed):
        main([*RUN, "--format", "npz"])
    killing(-1)
    assert json.loads(Path("samples/run.json").read_text())["done"] == 4
    damage(Path("samples/samples.partial.npy"))
    assert main([*RUN, "--format", "npz", "--resume"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "leave --resume out" in err
    assert main([*RUN, "--format", "npz"]) == 0


def test_a_picture_that_is_gone_is_missed(folder, capsys):
    assert main([*RUN, "--format", "png"]) == 0
    Path("samples/000003.png").unlink()
    assert main([*RUN, "--format", "png", "--resume"]) == 2
    assert "000003.png: is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"done": "2"}, "done is '2', expected a whole number"),
        ({"done": True}, "done is True, expected a whole number"),
        ({"done": -1}, "done is -1, expected 0 to the run's num, 5"),
        ({"done": 6}, "done is 6, expected 0 to the run's num, 5"),
        ({"done": 2.0}, "done is 2.0, expected a whole number"),
        ({"non_finite": [{"sample_index": 1}]}, "non_finite is {'sample_index': 1}, expected whole numbers row, "),
        ({"non_finite": 3}, "non_finite is 3, expected a list"),
        ({"files": ["../unet.onnx"]}, "files is '../unet.onnx', expected names of files in this folder"),
        ({"files": ["**"]}, "files is '**', expected names"),
        ({"files": [3]}, "files is 3, expected names"),
        ({"identity": []}, "identity is [], expected an object"),
        ({"identity": {"num": "5"}}, "expected 0 to the run's num, '5'"),
        ({"format": 1}, "format is 1, this version reads 2; install the version that wrote it, or give another --out"),
        ({"format": True}, "format is True, this version reads 2"),
    ],
)
def test_a_manifest_that_is_not_one_is_refused(folder, capsys, change, says):
    assert main(RUN) == 0
    manifest = Path("samples/run.json")
    manifest.write_text(sealed_text(json.loads(manifest.read_text()) | change))
    before = tree(folder / "samples")
    for flag in ("--resume", "--overwrite"):
        assert main([*RUN, "--seed", "3", flag]) == 2
        err = capsys.readouterr().err
        assert "run.json: " in err
        assert says in err
    assert tree(folder / "samples") == before
    assert Path("unet.onnx").exists()


def test_an_interrupt_just_after_the_manifest_is_written_tells_what_it_holds(folder, capsys, monkeypatch):
    write = RunManifest.write

    def interrupted(manifest, path):
        write(manifest, path)
        if manifest.done:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunManifest, "write", interrupted)
    assert main([*RUN, "--format", "npy"]) == 130
    assert "interrupted; 2 of 5 samples are kept in samples" in capsys.readouterr().err


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("name", ["pwrite", "fdatasync"])
def test_a_full_disk_costs_nothing_that_is_finished(folder, capsys, monkeypatch, code, name):
    assert main([*RUN, "--format", "npy", "--out", "whole"]) == 0
    calls, of_os = [0], getattr(os, name)

    def fails(descriptor, *arguments):
        calls[0] += name == "fdatasync" or len(arguments[0]) == 256  # a sample, and not the number in a lock
        if calls[0] > (2 if name == "pwrite" else 1):  # a batch of two is through
            raise OSError(code, os.strerror(code))
        return of_os(descriptor, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fails)
        capsys.readouterr()
        assert main([*RUN, "--format", "npy", "--out", "part"]) == 2
    err = capsys.readouterr().err
    assert f"samples.partial.npy: cannot be written ({os.strerror(code)}" in err
    assert ("needs 0.0 MB" in err) == (code != errno.EIO)
    assert "2 of 5 samples are kept in part, and --resume goes on" in err
    assert main([*RUN, "--format", "npy", "--out", "part", "--resume"]) == 0
    assert tree(folder / "part") == tree(folder / "whole")


@pytest.mark.parametrize("format_", FORMATS)
def test_a_limit_on_the_size_of_files_is_one_line(folder, format_):
    """The operating system's own refusal, which a memory map would have met as a signal."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))

    command = [sys.executable, "-m", "runtime.sample", *RUN, "--num", "40", "--format", format_]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=limited,
        timeout=120,
        check=False,
    )
    if format_ == "png":  # forty small files
        assert ended.returncode == 0
    else:
        assert ended.returncode == 2, ended.stderr
        assert "cannot be written" in ended.stderr
        assert "--resume goes on" in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("mount") is None, reason="only root may mount a small disk")
@pytest.mark.parametrize("format_", ["npy", "npz", "grid"])
def test_a_disk_that_fills_up_during_the_run(folder, capsys, format_):
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        command = ["--num", "400", "--batch-size", "20", "--steps", "2", "--format", format_, *RUN[-2:]]
        assert main([*command, "--out", "whole"]) == 0
        with (disk / "other").open("wb") as other:
            other.write(bytes(190_000 if format_ == "npy" else 220_000))
        found = main([*command, "--out", "disk/part"])
        err = capsys.readouterr().err
        assert found == 2, err
        assert "No space left on device" in err or "GiB are free" in err
        (disk / "other").unlink()
        assert main([*command, "--out", "disk/part", "--resume"]) == 0
        assert tree(disk / "part") == tree(folder / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_broken_samples_leave_holes_that_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = GaussianNetwork(PROCESS, 0.0, 0.5)
    network.save_onnx(tmp_path / "unet.onnx")
    assert main([*RUN, "--format", "npy", "--out", "whole"]) == 0
    states = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    huge = states.copy()
    huge[[1, 4]] = 3e38  # whose predictions overflow
    for format_, name in (("npy", "samples.npy"), ("npz", "samples.npz"), ("grid", "grid.png")):
        np.save("huge.npy", huge)
        assert main([*RUN, "--x-init", "huge.npy", "--format", format_, "--out", format_]) == 3
        np.save("three.npy", states[[0, 2, 3]])
        assert name in os.listdir(format_)
        assert "samples.partial.npy" not in os.listdir(format_)
        assert main([*RUN, "--x-init", "huge.npy", "--format", format_, "--out", format_, "--resume"]) == 3
    assert np.load("npy/samples.npy").shape == (3, 1, 8, 8)
    with np.load("npz/samples.npz") as file:
        assert file["arr_0"].shape == (3, 8, 8, 1)


def test_a_grid_has_at_most_134_million_pixels(tmp_path):
    """Pillow warns above 89 million and refuses above 179 million when a picture is read back."""
    shape = SampleShape(1, 128, 64)
    files.check_fits("grid", tmp_path, shape, 2**14)
    with pytest.raises(InputError, match="16385 images of 64x128 make more than 134,217,728 pixels; use --format png"):
        files.check_fits("grid", tmp_path, shape, 2**14 + 1)
    files.check_fits("npz", tmp_path, shape, 2**14 + 1)
