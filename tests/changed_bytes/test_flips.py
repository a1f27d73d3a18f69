"""A changed byte never changes an image without a word; `make torture` tries ten thousand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.changed_bytes.flips import FAULT, REFUSED, SAID, SAME, Finding, Flip, try_flips
from tests.changed_bytes.targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
NUM = 300


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """What came of a sample of flips, by target; in a process of its own, which is forked."""
    out = tmp_path_factory.mktemp("flips") / "flips.json"
    command = [sys.executable, "-m", "tests.changed_bytes", "--flips", str(NUM), "--out", str(out)]
    process = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-4000:]
    report = json.loads(out.read_text())
    assert not report["faults"]
    return report["found"]


def test_every_flip_is_refused_or_changes_no_image(found: dict[str, dict[str, int]]) -> None:
    assert found.keys() == {target.name for target in TARGETS}
    assert sum(sum(kinds.values()) for kinds in found.values()) >= NUM
    for target in TARGETS:
        assert found[target.name].keys() <= {REFUSED, SAME} or not target.has_digest


@pytest.mark.parametrize(
    "name",
    ["xml", "bin", "golden", "plan", "sidecar of an xml", "train.json", "safetensors", "samples of a shard, gathered"],
)
def test_what_a_hash_vouches_for_is_refused_wherever_it_was_changed(
    found: dict[str, dict[str, int]], name: str
) -> None:
    assert found[name].keys() == {REFUSED}


def test_a_damaged_record_costs_its_shard_and_no_image(found: dict[str, dict[str, int]]) -> None:
    assert found["record of a shard, resumed"].keys() == {SAME}


def reader(argv: Sequence[str]) -> int:
    """A command that misreads a file in every way; its first byte says which."""
    content = Path("file").read_bytes()
    way = chr(content[0])
    if way == "k":
        os.kill(os.getpid(), 9)
    if way == "b":
        raise KeyError("a bug")
    if way == "r":
        print("runtime.sample: file: was changed; copy it again", file=sys.stderr)
        return 2
    if way == "u":
        print("note: it has no digest", file=sys.stderr)
    if way == "x":
        return 1
    Path("out").mkdir()
    Path("out", "a.npy").write_bytes(b"other" if way in "ou" else b"same")
    return 0


def kinds_of(tmp_path: Path, ways: str, has_digest: bool) -> list[Finding]:
    (tmp_path / "folders" / "one").mkdir(parents=True)
    (tmp_path / "folders" / "one" / "file").write_bytes(b"s")
    (tmp_path / "scratch").mkdir()
    target = Target("the", "one", "file", reader, (), has_digest=has_digest)
    flips = [Flip(0, ord(way) ^ ord("s")) for way in ways]
    return list(try_flips(target, tmp_path / "folders", flips, tmp_path / "scratch"))


def test_every_fault_is_seen_and_ends_nothing(tmp_path: Path) -> None:
    found = kinds_of(tmp_path, "okbrxut", has_digest=True)
    assert [each.kind for each in found] == [FAULT, FAULT, FAULT, REFUSED, FAULT, FAULT, SAME]
    for finding, says in zip(
        found, ("other images", "status 9", "KeyError", "", "exit code 1", "other", ""), strict=True
    ):
        assert says in finding.story


def test_other_images_of_a_file_without_a_digest_must_be_announced(tmp_path: Path) -> None:
    found = kinds_of(tmp_path, "uot", has_digest=False)
    assert Counter(each.kind for each in found) == {SAID: 1, FAULT: 1, SAME: 1}
    assert "without a word" in found[1].story
