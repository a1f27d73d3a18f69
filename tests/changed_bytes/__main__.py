"""`make torture`: a byte of a file is changed, of every kind of file, and its reader must notice or draw the same."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.measurement import measurement_facts, write_report
from tests.changed_bytes.flips import FAULT, draw_flips, in_fork, try_flips
from tests.changed_bytes.targets import TARGETS, make_folders


def main() -> int:
    """The command line; returns 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=10_000, help="in all (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="of the targets whose names hold this")
    parser.add_argument("--out", type=Path, help="a JSON file of what was found")
    args = parser.parse_args()
    choose, began = random.Random(args.seed), time.monotonic()
    targets = [target for target in TARGETS if args.only in target.name]
    shares = sum(target.share for target in targets)
    found: dict[str, dict[str, int]] = {}
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folders, scratch = Path(place, "folders"), Path(place, "scratch")
        folders.mkdir()
        scratch.mkdir()
        in_fork(lambda: make_folders(folders))
        for target in targets:
            flips = draw_flips(target, folders, -(-args.flips * target.share // shares), choose)
            findings = list(try_flips(target, folders, flips, scratch))
            found[target.name] = dict(sorted(Counter(each.kind for each in findings).items()))
            faults += [each.story for each in findings if each.kind == FAULT]
            print(f"{target.name}: {found[target.name]}", flush=True)
    num = sum(sum(kinds.values()) for kinds in found.values())
    print(f"{num} flips in {time.monotonic() - began:.0f} s, {len(faults)} faults", *faults[:20], sep="\n")
    if args.out is not None:
        facts = measurement_facts("tests.changed_bytes", None)
        write_report({"format": 1, **facts, "flips": num, "faults": faults, "found": found}, args.out)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
