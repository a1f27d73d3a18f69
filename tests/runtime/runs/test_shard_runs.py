"""Runs in shards, as a user types them: the same images however they are cut, resumed, damaged and gathered."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from runtime.chain.host import HostChain
from runtime.formats.digest import sealed_text
from runtime.gather import main as gather
from runtime.sample import main
from tests.gaussian import GaussianNetwork
from tests.runtime.gaussian_folder import PROCESS
from tests.runtime.runs.sharded_runs import RUN, draw, hidden, identity_of, images_of, visible


@pytest.fixture
def one_run(folder):
    """(index, SHA-256) of what a run that is not in shards draws."""
    assert main([*RUN, "--format", "npz", "--out", "one"]) == 0
    with np.load("one/samples.npz") as file:
        images = file["arr_0"]
    return [(5 + place, hashlib.sha256(image.tobytes()).hexdigest()) for place, image in enumerate(images)]


@pytest.mark.parametrize("format_", ["npz", "png", "tar"])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 100])
def test_shards_of_any_size_and_format_hold_the_same_images(folder, one_run, size, format_):
    assert draw("run", "--shard-size", str(size), "--format", format_) == 0
    assert images_of("run") == one_run
    assert hidden("run") == set()
    assert gather(["run"]) == 0
    np.savez("expected.npz", arr_0=np.load("one/samples.npz")["arr_0"])
    assert Path("run/samples.npz").read_bytes() == Path("expected.npz").read_bytes()


def test_a_run_may_begin_anywhere(folder, one_run):
    """The batches, too, are those of the run that begins at 0."""
    assert draw("run", "--start", "0", "--num", "28", "--shard-size", "8") == 0
    assert images_of("run")[5:] == one_run
    # The shards that both runs have whole are the same files.
    assert draw("late", "--shard-size", "8") == 0
    for name in ("shard-000000008-000000015.npz", "shard-000000024-000000027.npz"):
        assert Path("run", name).read_bytes() == Path("late", name).read_bytes()


def test_every_batch_has_the_runs_shape(folder, monkeypatch):
    shapes, init = [], HostChain.__init__
    monkeypatch.setattr(HostChain, "__init__", lambda self, *a, **k: (shapes.append(a[2]), init(self, *a, **k))[1])
    assert draw("run", "--shard-size", "7") == 0
    assert set(shapes) == {4}


def test_not_even_a_library_that_mixes_samples_shows_where_a_run_was_cut(folder, monkeypatch):
    """As if rounding depended on the place in the batch, and on what stands in the others."""
    enqueue = HostChain.enqueue

    def mixing(chain, num_rows):
        enqueue(chain, num_rows)
        chain._x += 0.1 * chain._x.mean(axis=0) + 0.1 * np.arange(len(chain._x), dtype=np.float32)[:, None, None, None]

    monkeypatch.setattr(HostChain, "enqueue", mixing)
    assert draw("whole", "--shard-size", "100") == 0
    expected = images_of("whole")
    for size in (1, 2, 7):
        assert draw(f"run{size}", "--shard-size", str(size)) == 0
        assert images_of(f"run{size}") == expected
    assert draw("late", "--start", "11", "--num", "17", "--shard-size", "7") == 0
    assert images_of("late") == expected[6:]
    assert main([*RUN, "--format", "npz", "--out", "one"]) == 0
    with np.load("one/samples.npz") as file:  # in which other samples stand together
        assert hashlib.sha256(file["arr_0"][0].tobytes()).hexdigest() != expected[0][1]


def test_large_runs_are_in_shards_by_themselves(folder, capsys):
    large = ["--steps", "1", "--backend", "onnxruntime", "--num", "4097"]
    assert main([*large, "--out", "run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["shards"], report["format"], report["shard_size"], report["batch_size"]) == (5, "npz", 1024, 64)
    assert report["files"][-1] == "run/shard-000004096-000004096.npz"
    assert main([*large, "--format", "npy", "--out", "npy"]) == 0
    assert visible("npy") == {"run.json", "samples.npy"}
    assert main([*large[:-1], "4096", "--format", "npz", "--out", "small"]) == 0
    assert visible("small") == {"run.json", "samples.npz"}


def test_parts_make_the_run(folder, one_run, monkeypatch):
    for index in (2, 0, 1):
        assert draw("run", "--shard-size", "4", "--shard", f"{index}/3", "--resume") == 0
    assert images_of("run") == one_run
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    monkeypatch.setenv("JOB_COMPLETIONS", "3")
    assert draw("auto", "--shard-size", "4", "--shard", "auto") == 0
    expected = [(index, digest) for index, digest in one_run if index // 4 % 3 == 2]
    assert images_of("auto") == expected


def test_a_part_without_a_shard_is_done(folder, capsys):
    assert draw("run", "--shard-size", "12", "--shard", "5/6") == 0
    assert "0 samples in 0 shards" in capsys.readouterr().out


def test_resume_draws_what_is_missing_or_damaged(folder, one_run, capsys):
    assert draw("run", "--shard-size", "8") == 0
    whole = {name: Path("run", name).read_bytes() for name in visible("run")}
    names = sorted(visible("run") - {"run.json"})
    for damage in (
        lambda: Path("run", names[0]).unlink(),
        lambda: Path("run", names[1]).unlink(),
        lambda: os.truncate(Path("run", names[3]), 100),
        lambda: os.truncate(Path("run", names[2]), 100),
        lambda: Path("run", names[2]).write_text("{}"),
        lambda: shutil.copy(Path("run", names[0]), Path("run", names[2])),
        lambda: [Path("run", name).unlink() for name in names],
    ):
        damage()
        capsys.readouterr()
        assert draw("run", "--resume") == 0  # the sizes are the run's own
        assert {name: Path("run", name).read_bytes() for name in visible("run")} == whole
    assert images_of("run") == one_run
    before = {name: Path("run", name).stat().st_mtime_ns for name in visible("run")}
    assert draw("run", "--resume", "--verify") == 0
    assert {name: Path("run", name).stat().st_mtime_ns for name in names} == {name: before[name] for name in names}


def test_a_picture_by_another_name_is_damage(folder, one_run):
    assert draw("run", "--shard-size", "8", "--format", "png") == 0
    shard = Path("run/shard-000000008-000000015")
    (shard / "000000008.png").rename(shard / "000000007.png")
    assert draw("run", "--resume", "--verify") == 0
    assert images_of("run") == one_run
    assert len(os.listdir(shard)) == 8


@pytest.mark.parametrize("format_", ["npz", "png", "tar"])
def test_only_verify_reads_what_is_done(folder, one_run, capsys, format_):
    assert draw("run", "--shard-size", "8", "--format", format_) == 0
    file = next(
        path for path in sorted(Path("run").iterdir()) if path.name.startswith("shard-") and path.suffix != ".json"
    )
    if format_ == "png":
        file = sorted(file.iterdir())[1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert draw("run", "--resume") == 0
    assert file.read_bytes() == content
    capsys.readouterr()
    assert gather(["run", "--out", "all.npz"]) == 3
    assert "is damaged" in capsys.readouterr().err
    assert not Path("all.npz").exists()
    assert draw("run", "--resume", "--verify") == 0
    assert "is damaged" in capsys.readouterr().err
    assert images_of("run") == one_run


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--seed", "1"], "seed is 0, this run's is 1"),
        (["--num", "22"], "num is 23, this run's is 22"),
        (["--start", "4"], "start is 5, this run's is 4"),
        (["--steps", "3"], "steps is 2, this run's is 3"),
        (["--shard-size", "4"], "shard_size is 8, this run's is 4"),
        (["--batch-size", "2"], "batch_size is 4, this run's is 2"),
        (["--format", "tar"], "format is 'npz', this run's is 'tar'"),
        (["--eta", "0.5", "--sampler", "ddim"], "sampler is 'ddpm', this run's is 'ddim'"),
    ],
)
def test_another_run_is_refused_by_the_field(folder, capsys, flags, field):
    assert draw("run", "--shard-size", "8") == 0
    before = {name: Path("run", name).read_bytes() for name in visible("run")}
    for go_on in (["--resume"], []):
        capsys.readouterr()
        assert draw("run", "--shard-size", "8", *flags, *go_on) == 2
        assert field in capsys.readouterr().err
    assert {name: Path("run", name).read_bytes() for name in visible("run")} == before
    assert draw("run", "--shard-size", "8", *flags, "--overwrite") == 0
    assert draw("fresh", "--shard-size", "8", *flags) == 0
    assert visible("run") == visible("fresh")
    assert images_of("run") == images_of("fresh")


def test_pictures_are_replaced_with_their_folders_alone(folder, capsys):
    assert draw("run", "--shard-size", "8", "--format", "png") == 0
    Path("run/shard-000000008-000000015/mine.txt").touch()
    assert draw("run", "--shard-size", "8", "--seed", "1", "--overwrite") == 2
    assert "Directory not empty" in capsys.readouterr().err
    assert Path("run/shard-000000008-000000015/mine.txt").exists()


def test_foreign_shards_are_neither_used_nor_replaced(folder, capsys):
    assert draw("run", "--shard-size", "8") == 0
    assert draw("other", "--shard-size", "8", "--seed", "1") == 0
    for name in ("shard-000000008-000000015.npz", "shard-000000008-000000015.json"):
        shutil.copy(Path("other", name), Path("run", name))
    assert draw("run", "--resume") == 2
    assert "is of another run" in capsys.readouterr().err
    assert Path("run", name).read_bytes() == Path("other", name).read_bytes()
    Path("mine").mkdir()
    Path("mine/shard-000000008-000000015.npz").write_text("mine")
    assert draw("mine", "--shard-size", "8", "--resume") == 2
    assert "is in the way" in capsys.readouterr().err
    assert Path("mine/shard-000000008-000000015.npz").read_text() == "mine"


def test_states_that_begin_a_chain_belong_to_their_samples(folder):
    np.save("states.npy", np.random.default_rng(0).normal(size=(23, 1, 8, 8)).astype(np.float32))
    run = [*RUN, "--x-init", "states.npy", "--from-timestep", "500"]
    assert main([*run, "--format", "npz", "--out", "one"]) == 0
    assert draw("run", "--shard-size", "7", run=run) == 0
    assert gather(["run"]) == 0
    np.testing.assert_array_equal(np.load("run/samples.npz")["arr_0"], np.load("one/samples.npz")["arr_0"])


@pytest.mark.parametrize("format_", ["npz", "png", "tar"])
def test_a_sample_that_breaks_is_named_and_absent_and_no_other(tmp_path, monkeypatch, capsys, format_):
    monkeypatch.chdir(tmp_path)
    GaussianNetwork(PROCESS, 0.0, 0.5).save_onnx(tmp_path / "unet.onnx")
    states = np.random.default_rng(0).normal(size=(23, 1, 8, 8)).astype(np.float32)
    np.save("states.npy", states)
    states[[1, 8, 9, 10]] = 3e38  # whose predictions overflow; sample indices 6 and a shard of its own, 13 to 15
    np.save("huge.npy", states)
    flags = ["--shard-size", "3", "--format", format_]
    for out, name, code in (("whole", "states", 0), ("run", "huge", 3)):
        run = [*RUN, "--x-init", f"{name}.npy"]
        capsys.readouterr()
        assert draw(out, *flags, run=run) == code
    said = capsys.readouterr().err
    assert "4 of 23 samples were not written: sample 6 is not finite from row 0" in said
    assert images_of("run") == [each for each in images_of("whole") if each[0] not in (6, 13, 14, 15)]
    assert draw("run", *flags, "--resume", run=run) == 3  # again and again
    assert gather(["run"]) == 3
    assert "4 samples broke and are in no shard, 6 the first" in capsys.readouterr().err
    assert gather(["run", "--partial"]) == 0
    assert np.load("run/samples.npz")["arr_0"].shape == (19, 8, 8, 1)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--shard-size", "0"], "--shard-size is 0, expected at least 1"),
        (["--shard-size", "4", "--format", "npy"], "--format npy: shards are npz, png or tar"),
        (["--shard", "3/3"], "--shard is '3/3', expected auto or i/n"),
        (["--shard-size", "4", "--trajectory", "3"], "--shard-size and --trajectory were both given"),
        (["--verify"], "--verify was given without --resume"),
        (["--verify", "--resume"], "--verify is for runs in shards"),
    ],
)
def test_flags_that_make_no_sense(folder, capsys, flags, says):
    assert draw("run", *flags) == 2
    assert says in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 1}, "format is 1, this version reads 2"),
        ({"sha256": "00"}, "sha256 is '00', expected a SHA-256"),
        ({"file": "../unet.onnx"}, "file is '../unet.onnx', expected the name of a file in this folder"),
        ({"file": "unet.onnx"}, "file is 'unet.onnx', expected 'shard-000000008-000000015.npz'"),
        ({"first": 9}, "first is 9, expected 8"),
        ({"num": 0}, "num is 0, expected at least 1"),
        ({"num": True}, "num is True, expected a whole number"),
        ({"num_bytes": -1}, "num_bytes is -1, expected at least 0"),
        ({"non_finite": [{"sample_index": 99, "row": 0, "timestep": 0}]}, "non_finite is [99], expected ascending"),
        ({"non_finite": 3}, "non_finite is 3, expected a list"),
    ],
)
def test_a_record_that_is_not_one_costs_its_shard(folder, capsys, change, says):
    assert draw("run", "--shard-size", "8") == 0
    record = Path("run/shard-000000008-000000015.json")
    before = record.read_text()
    record.write_text(sealed_text(json.loads(before) | change))
    assert draw("run", "--resume") == 0
    assert f"note: {record}: {says}" in capsys.readouterr().err
    assert record.read_text() == before


def test_gather_needs_a_run_that_is_done(folder, capsys):
    assert draw("run", "--shard-size", "8", "--shard", "1/2") == 0
    for arguments, says in (
        (["run"], "2 of 4 shards are not done, shard-000000005-000000007 the first; finish the run with --resume"),
        (["none"], "none: holds no run.json"),
        (["run", "--out", "samples.npy"], "found the suffix '.npy', expected .npz"),
    ):
        assert gather(arguments) == 2
        assert says in capsys.readouterr().err
    assert gather(["run", "--partial", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": "run/samples.npz", "num": 12, "left_out": 11, "shards": 2}
    assert gather(["run", "--partial"]) == 2
    assert "is in the way" in capsys.readouterr().err
    assert draw("one") == 0
    assert gather(["one"]) == 2
    assert "its shard_size is None" in capsys.readouterr().err
    assert identity_of("run")["shard_size"] == 8
