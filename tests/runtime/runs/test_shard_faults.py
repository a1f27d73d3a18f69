"""Kills and failing disks at every single write of a run in shards: the same images in the end, and nothing in part."""

import errno
import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from diffusion.errors import InputError
from runtime.chain.host import HostChain
from runtime.formats.run_manifest import NonFiniteSample
from runtime.runs import shard_drawing
from runtime.runs.folder_store import FileThatGrows
from runtime.runs.journal import Journal, KeptBatch
from runtime.runs.shard_folder import identity_sha256
from tests.runtime.runs.sharded_runs import draw, hidden, identity_of, images_of, visible
from tests.runtime.runs.torture import torture

RUN = ["--num", "10", "--batch-size", "2", "--steps", "2", "--backend", "onnxruntime", "--shard-size", "6"]


class Killed(BaseException):
    """As a signal that cannot be caught."""


class Disk:
    """Fails at the n-th call of what writes: as a kill does, or with an error, once or from then on.

    Attributes:
        calls: so far.
    """

    def __init__(self, monkeypatch):
        self.calls, self.fails_at, self.error, self.persistent = 0, -1, None, False
        for owner, name in (
            (os, "fsync"),
            (os, "fdatasync"),
            (os, "pwrite"),
            (os, "ftruncate"),
            (Path, "replace"),
            (Path, "unlink"),
            (Path, "mkdir"),
            (Path, "write_text"),
            (tempfile, "mkstemp"),
            (np, "savez"),
        ):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name), name))

    def set(self, fails_at, error=None, persistent=False):
        self.calls, self.fails_at, self.error, self.persistent = 0, fails_at, error, persistent

    def _counted(self, call, name):
        def counted(*arguments, **options):
            number, self.calls = self.calls, self.calls + 1
            failing = self.fails_at >= 0 and (number == self.fails_at or (self.persistent and number > self.fails_at))
            if not failing:
                return call(*arguments, **options)
            if name in ("savez", "write_text"):  # a part of it is written
                call(*arguments, **options)
                os.truncate(arguments[0], 10)
            if self.error is None:
                self.fails_at = -1  # the process would be gone: what Python still cleans up, a kill would leave
                raise Killed
            raise OSError(self.error, os.strerror(self.error))

        return counted


@pytest.fixture
def disk(monkeypatch):
    monkeypatch.setattr(shard_drawing, "WORK_PER_WRITING", 0.0)  # as of batches that take seconds
    return Disk(monkeypatch)


@pytest.fixture
def batches(monkeypatch):
    """Counts the batches that are begun."""
    begun, begin = [], HostChain.begin
    monkeypatch.setattr(HostChain, "begin", lambda chain, *a, **k: (begun.append(1), begin(chain, *a, **k))[1])
    return begun


@pytest.mark.parametrize("format_", ["npz", "png"])
def test_a_kill_at_any_write_costs_one_batch(folder, disk, batches, format_):
    assert draw("whole", "--format", format_, run=RUN) == 0
    of_run = len(batches)
    for count in itertools.count():
        out = f"part{count}"
        disk.set(count)
        batches.clear()
        try:
            assert draw(out, "--format", format_, run=RUN) == 0
            killed = False
        except Killed:
            killed = True
        disk.set(-1)
        if Path(out, "run.json").exists():
            part = images_of(out)  # which checks the hash of every shard that has a record
            assert set(part) <= set(images_of("whole"))
        assert draw(out, "--format", format_, "--resume", run=RUN) == 0
        assert len(batches) <= of_run + 1
        assert visible(out) == visible("whole")
        assert images_of(out) == images_of("whole")
        assert not {name for name in hidden(out) if not name.endswith(".lock")}
        if not killed:
            assert count > 20
            return


@pytest.mark.parametrize(("code", "persistent"), [(errno.EIO, False), (errno.ENOSPC, True)], ids=["once", "for good"])
def test_a_disk_that_fails_at_any_write_is_one_line(folder, disk, capsys, code, persistent):
    assert draw("whole", run=RUN) == 0
    for count in itertools.count():
        out = f"part{count}"
        disk.set(count, code, persistent)
        capsys.readouterr()
        found = draw(out, run=RUN)
        failed = disk.calls > count
        disk.set(-1)
        err = capsys.readouterr().err
        assert found in ((0, 2) if failed else (0,)), err
        assert "bug" not in err
        if found == 2:
            assert os.strerror(code) in err
        if Path(out, "run.json").exists():
            assert set(images_of(out)) <= set(images_of("whole"))
        assert draw(out, "--resume", run=RUN) == 0
        assert images_of(out) == images_of("whole")
        assert visible(out) == visible("whole")
        if not failed:
            assert count > 20
            return


@pytest.mark.parametrize("row", [0, 1])
def test_a_network_that_breaks_at_a_step_costs_that_image_alone(folder, monkeypatch, capsys, row):
    assert draw("whole", run=RUN) == 0
    enqueue = HostChain.enqueue

    def breaks(chain, num_rows):
        slots = np.flatnonzero((chain._slots["sample_index"] == 7) & (chain._slots["row"] == row))
        chain._x[slots] = np.nan
        enqueue(chain, num_rows)

    monkeypatch.setattr(HostChain, "enqueue", breaks)
    capsys.readouterr()
    assert draw("run", run=RUN) == 3
    assert f"1 of 10 samples were not written: sample 7 is not finite from row {row}" in capsys.readouterr().err
    assert images_of("run") == [each for each in images_of("whole") if each[0] != 7]


def batch(first, end, broken=()):
    non_finite = tuple(NonFiniteSample(index, 0, 9) for index in broken)
    images = np.random.default_rng(first).integers(0, 256, (end - first - len(broken), 2, 3, 1), np.uint8)
    return KeptBatch(first, end, images, non_finite)


def read(path, digest="a"):
    return [(each.first, each.end, each.images.tobytes(), each.non_finite) for each in journal(path, digest).read()]


def journal(path, digest="a"):
    return Journal(FileThatGrows(path), digest, 4, (2, 3, 1))


def test_of_a_journal_that_is_cut_or_damaged_anywhere_the_batches_before_are_read(tmp_path):
    path = tmp_path / "journal"
    batches, ends = [batch(4, 6), batch(6, 9, (7,)), batch(9, 10, (9,))], [0]
    writing = journal(path)
    for each in batches:
        writing.add([each])
        ends.append(path.stat().st_size)
    whole = path.read_bytes()
    expected = [(each.first, each.end, each.images.tobytes(), each.non_finite) for each in batches]
    assert read(path) == expected
    assert read(path, "b") == []
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert read(path) == expected[: sum(end <= size for end in ends[1:])]
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert read(path) == expected[: sum(end <= place for end in ends[1:])]
    # What is added goes after what could be read.
    for rest in (whole[:-1], whole[: ends[2]] + b"junk" * 1000):
        path.write_bytes(rest)
        again = journal(path)
        again.read()
        again.add([batches[2]])
        assert path.read_bytes() == whole


def test_a_journal_that_lies_about_its_size_takes_no_memory(tmp_path):
    path = tmp_path / "journal"
    for numbers in ('"first": 4, "end": 1000000000000', '"first": 4, "end": 1e3', '"first": 9, "end": 4'):
        path.write_text(f'{"0" * 64} {{{numbers}, "identity_sha256": "a", "non_finite": []}}\n')
        assert read(path) == []
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="is a folder, expected a regular file; remove it"):
        read(path)


def test_a_journal_is_no_pipe_to_wait_for_and_no_link_to_write_through(tmp_path):
    path, theirs = tmp_path / "journal", tmp_path / "theirs"
    os.mkfifo(path)
    with pytest.raises(InputError, match="is a pipe, expected a regular file; remove it"):
        read(path)
    with pytest.raises(InputError, match="journal: cannot be written"):
        journal(path).add([batch(4, 6)])
    path.unlink()
    theirs.write_text("theirs")
    path.symlink_to(theirs)
    with pytest.raises(InputError, match="journal: cannot be written"):
        journal(path).add([batch(4, 6)])
    assert theirs.read_text() == "theirs"


def test_the_identity_of_a_run_is_in_what_it_keeps(folder):
    assert draw("run", run=RUN) == 0
    digest = identity_sha256(identity_of("run"))
    assert digest in Path("run/shard-000000000-000000005.json").read_text()


def test_small_batches_are_kept_together_and_all_of_them_after_ctrl_c(folder, batches, monkeypatch, capsys):
    assert draw("whole", run=RUN) == 0
    of_run = len(batches)
    batches.clear()
    add, added = Journal.add, []
    monkeypatch.setattr(Journal, "add", lambda self, kept: (added.append(len(kept)), add(self, kept))[1])
    begin = HostChain.begin

    def interrupted(chain, *arguments, **options):
        begin(chain, *arguments, **options)
        if len(batches) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(HostChain, "begin", interrupted)
    assert draw("run", run=RUN) == 130
    assert added == [2]
    assert draw("run", "--resume", run=RUN) == 0
    assert len(batches) == of_run + 1
    assert images_of("run") == images_of("whole")


def test_runs_that_are_killed_at_random_moments(folder):
    """`make torture` does the same a hundred times."""
    assert torture(kills=3, steps=20, seed=1).endswith("the same images")
