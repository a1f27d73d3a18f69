"""One byte of a file changed, and what its reader makes of it: refused in one line, the same images, or a fault."""

from __future__ import annotations

import json
import os
import random
import re
import select
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.changed_bytes.targets import Target
from tests.fuzz.outcome import HangError, run

REFUSED, SAME, SAID, FAULT = "refused", "same images", "other images, said that nothing was checked", "fault"
_REFUSALS = (2, 3)
# A command is interrupted by itself before; this is for one that hangs in a library.
_HANG_SECONDS = 180.0
# Of one process, so that what a library leaks stays small.
_FLIPS_OF_A_PROCESS = 100


@dataclass(frozen=True)
class Flip:
    """A byte of a target's file, and what it is combined with (exclusive or)."""

    place: int
    bits: int


@dataclass(frozen=True)
class Finding:
    """What came of a flip.

    Attributes:
        flip: that was made; None for the file as it is.
        kind: one of `REFUSED`, `SAME`, `SAID`, `FAULT`.
        story: of a fault, what happened; of the file as it is, what the command made.
    """

    flip: Flip | None
    kind: str
    story: str = ""


def in_fork(work: Callable[[], None]) -> None:
    """Do something in a fork, so that no thread of a library is started in this process, which is forked again."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the fork ended with status {status}"


def draw_flips(target: Target, folders: Path, num: int, choose: random.Random) -> list[Flip]:
    """So many flips of a target, no place twice unless there are too few."""
    size = (folders / target.folder / target.file).stat().st_size
    places = choose.sample(range(size), min(num, size))
    places += [choose.randrange(size) for _ in range(num - len(places))]
    # Half of them of one bit, as disks and memory make them: that turns a digit into another digit more often.
    return [Flip(place, choose.choice((choose.randrange(1, 256), 1 << choose.randrange(8)))) for place in places]


def try_flips(target: Target, folders: Path, flips: Sequence[Flip], scratch: Path) -> Iterator[Finding]:
    """Try flips in forks of this process, which has imported all that the commands need and opened nothing.

    Args:
        target: whose file is changed.
        folders: of all targets, which stay as they are.
        flips: to be tried.
        scratch: an empty folder to work in.
    """
    (expected,) = _in_fork(target, folders, [None], scratch, {})
    if expected.kind != SAME:
        raise AssertionError(f"{target.name}: without a flip: {expected.story}")
    left = list(flips)
    while left:
        part, done = left[:_FLIPS_OF_A_PROCESS], 0
        for finding in _in_fork(target, folders, part, scratch, json.loads(expected.story)):
            done += 1
            yield finding
        left = left[done:]


def _in_fork(
    target: Target, folders: Path, flips: Sequence[Flip | None], scratch: Path, expected: dict[str, str]
) -> Iterator[Finding]:
    """Findings of the flips, up to one that ended the process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
            with os.fdopen(writer, "w", encoding="utf-8") as pipe:
                for flip in flips:
                    print(json.dumps(asdict(_try(target, folders, flip, scratch, expected))), file=pipe, flush=True)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        for flip in flips:
            line = pipe.readline() if select.select([pipe], [], [], _HANG_SECONDS)[0] else None
            if not line:
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                what = "hangs" if line is None else f"ended the process with status {status}"
                yield Finding(flip, FAULT, f"{target.name}: {what}")
                return
            fields = json.loads(line)
            yield Finding(flip, fields["kind"], fields["story"])
    os.waitpid(child, 0)


def _try(target: Target, folders: Path, flip: Flip | None, scratch: Path, expected: dict[str, str]) -> Finding:
    folder = scratch / "work"
    shutil.rmtree(folder, ignore_errors=True)
    if not target.with_cache:
        shutil.rmtree(scratch / "cache", ignore_errors=True)
    shutil.copytree(folders / target.folder, folder)
    if flip is not None:
        path = folder / target.file
        content = bytearray(path.read_bytes())
        content[flip.place] ^= flip.bits
        path.write_bytes(content)
    try:
        outcome = run(target.main, target.argv, folder, seconds=60.0)
        outcome.check(may_keep=lambda name: name.startswith("out"))
        if flip is None:
            made = _made(target, folder, outcome.out)
            assert made, f"nothing was made: {outcome}"
            return Finding(None, SAME, json.dumps(made))
        if outcome.code in _REFUSALS:
            return Finding(flip, REFUSED)
        assert outcome.code == 0, f"exit code {outcome.code}: {outcome.err[-1000:]}"
        if _made(target, folder, outcome.out) == expected:
            return Finding(flip, SAME)
        said = outcome.err[-1000:]
        assert not target.has_digest, f"other images: {said}"
        assert re.search("has no digest|without digest", said), f"other images without a word: {said}"
        return Finding(flip, SAID)
    except (AssertionError, HangError) as error:
        return Finding(flip, FAULT, f"{target.name}, byte {flip and flip.place} ^ {flip and flip.bits}: {error}")
    except BaseException as error:  # what came out of a command that is no exit code
        return Finding(flip, FAULT, f"{target.name}, {flip}: {type(error).__name__}: {error}")


def _made(target: Target, folder: Path, out: str) -> dict[str, str]:
    """What the command made, by the name of the file, in hexadecimal."""
    if not target.result:
        return {"": out}
    return {path.name: path.read_bytes().hex() for path in folder.glob(target.result)}
