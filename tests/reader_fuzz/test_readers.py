"""Seeds and what fuzzing found, tried on every reader: each is read, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reader_fuzz.readers import READERS, try_reader

SEEDS = Path(__file__).with_name("seeds")
FILES = sorted(path.relative_to(SEEDS) for path in SEEDS.rglob("*") if path.is_file())


def test_every_reader_has_a_seed_that_it_reads(tmp_path: Path) -> None:
    assert {path.parts[0] for path in FILES} == set(READERS)
    for number, name in enumerate(READERS):
        seeds = sorted((SEEDS / name).glob("seed-*"))
        assert seeds
        for seed in seeds:
            folder = tmp_path / f"{number}-{seed.name}"
            folder.mkdir()
            said = try_reader(name, seed.read_bytes(), folder)
            # An index names files that are not beside it here.
            assert said is None or (name == "safetensors_index" and "which is not there" in said), (seed, said)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_that_is_cut_or_has_a_changed_byte_is_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    content = (SEEDS / path).read_bytes()
    for part in (content, b"", content[: len(content) // 2], content[:-1], content + b"\0", content * 2):
        try_reader(path.parts[0], part, tmp_path)
    for place in range(0, len(content), max(1, len(content) // 20)):
        try_reader(path.parts[0], content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :], tmp_path)
