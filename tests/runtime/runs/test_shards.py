"""How runs are cut, and which part of the shards a machine draws."""

import errno
import io
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.errors import InputError
from runtime.runs.parts import Part
from runtime.runs.shard_progress import RunProgress
from runtime.runs.shards import Shard, ShardPlan, choose_sizes

small = st.integers(1, 40)


@given(st.integers(0, 200), small, small, small)
def test_shards_are_the_run_and_batches_are_whole(start, num, shard_size, batch_size):
    plan = ShardPlan(start, num, shard_size, batch_size)
    shards = list(plan)
    assert len(shards) == len(plan)
    assert [index for shard in shards for index in range(shard.first, shard.end)] == list(range(start, start + num))
    assert all(shard.first % shard_size == 0 for shard in shards[1:])
    assert len({shard.name for shard in shards}) == len(shards)
    for shard in shards:
        first, end = plan.whole_batches(shard.first, shard.end)
        assert first % batch_size == end % batch_size == 0
        assert first <= shard.first < first + batch_size
        assert end - batch_size < shard.end <= end
        assert plan.calls(shard) * batch_size == end - first


def test_names_are_those_of_the_first_and_the_last_sample():
    assert Shard(0, 1000).name == "shard-000000000-000000999"
    assert [shard.name for shard in ShardPlan(998, 4, 1000, 8)] == [
        "shard-000000998-000000999",
        "shard-000001000-000001001",
    ]
    with pytest.raises(IndexError):
        ShardPlan(0, 4, 2, 2)[2]


def test_the_last_batch_fits_64_bits():
    ShardPlan(2**64 - 20, 12, 8, 8)
    with pytest.raises(InputError, match=r"expected start \+ num at most 2\^64 - 8"):
        ShardPlan(2**64 - 20, 13, 8, 8)


@pytest.mark.parametrize(
    ("usual", "shard_size", "batch_size", "chosen"),
    [
        (64, None, None, (1024, 64)),
        (64, None, 8, (1000, 8)),
        (64, None, 3000, (3000, 3000)),
        (64, 1000, None, (1000, 50)),
        (64, 1000, 64, (1000, 64)),  # what is said is done
        (64, 7, None, (7, 7)),
        (64, 1009, None, (1009, 64)),  # a prime
        (1, 10, None, (10, 1)),
    ],
)
def test_shards_are_of_whole_batches_where_they_can_be(usual, shard_size, batch_size, chosen):
    assert choose_sizes(usual, shard_size, batch_size) == chosen


def test_no_batch_is_smaller_than_the_engine_takes():
    assert choose_sizes(8, 7, None, smallest_batch=8) == (7, 8)
    assert choose_sizes(8, 12, None, smallest_batch=8) == (12, 8)  # 6 would divide it
    assert choose_sizes(8, 12, None, smallest_batch=1) == (12, 6)


@given(st.integers(1, 60), st.integers(1, 12))
def test_parts_share_the_shards(shards, count):
    parts = [Part.parse(f"{index}/{count}") for index in range(count)]
    drawn = sorted(place for part in parts for place in range(part.index, shards, part.count))
    assert drawn == list(range(shards))


SLURM = {"ID": "5", "COUNT": "4", "MIN": "3", "MAX": "9", "STEP": "2"}


def slurm(**changes):
    return {f"SLURM_ARRAY_TASK_{name}": value for name, value in (SLURM | changes).items() if value}


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        (slurm(), Part(1, 4)),
        (slurm(ID="9"), Part(3, 4)),
        (slurm(ID="3", STEP="", MIN="0", MAX="3"), Part(3, 4)),
        ({"JOB_COMPLETION_INDEX": "7", "JOB_COMPLETIONS": "8"}, Part(7, 8)),
    ],
)
def test_the_scheduler_says_which_part(environment, part):
    assert Part.parse("auto", environment) == part


@pytest.mark.parametrize(
    ("text", "environment", "says"),
    [
        ("8/8", {}, "expected auto or i/n, from 0/n to n-1/n"),
        ("1", {}, "--shard is '1'"),
        ("-1/4", {}, "--shard is '-1/4'"),
        ("0/0", {}, "--shard is '0/0'"),
        ("auto", {}, "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"),
        ("auto", slurm(COUNT=""), "SLURM_ARRAY_TASK_COUNT is not set"),
        ("auto", slurm(COUNT="x"), "SLURM_ARRAY_TASK_COUNT is 'x', expected a whole number"),
        ("auto", slurm(MAX="11"), "expected all of a range"),  # sbatch --array=3,5,9,11
        ("auto", slurm(ID="4"), "expected all of a range"),
        ("auto", {"JOB_COMPLETION_INDEX": "7"}, "JOB_COMPLETIONS is not set"),
        ("auto", {"JOB_COMPLETION_INDEX": "8", "JOB_COMPLETIONS": "8"}, "expected less than JOB_COMPLETIONS, 8"),
    ],
)
def test_no_part_is_guessed(text, environment, says):
    with pytest.raises(InputError) as error:
        Part.parse(text, environment)
    assert says in str(error.value)


@pytest.mark.parametrize("num", [10**12, 2**64 - 10])
def test_more_shards_than_a_folder_holds_are_refused_before_they_are_listed(num):
    with pytest.raises(InputError, match="shards, expected at most 4,194,304; give a larger --shard-size"):
        ShardPlan(0, num, 1, 1)
    assert len(ShardPlan(0, 1 << 22, 1, 1)) == 1 << 22


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_log_on_a_full_disk_ends_no_run(monkeypatch):
    monkeypatch.setattr(sys, "stderr", FullDisk())
    now = iter(range(0, 10_000, 100))
    with RunProgress(8, 0, 4, 2, 2, now=lambda: float(next(now))) as progress:
        progress.step(4)
        progress.batch(4)
    assert progress.drawn == 4
