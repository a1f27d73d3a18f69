"""The harness itself: what it must notice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands.program import make_parser, run_program
from diffusion.errors import InputError
from tests.fuzz.outcome import HangError, run


def command(work):
    return lambda argv: run_program(make_parser("train.test", "A test."), work, argv)


def refuse(args):
    raise InputError("no")


def bug(args):
    raise RuntimeError("bug")


def leave(args):
    Path("left").touch()
    raise InputError("no")


def chat(args):
    subprocess.run([sys.executable, "-c", "print('Traceback (most recent call last)')"], check=True)
    raise InputError("no")


def trail(args):
    os.write(2, b"terminate called without an active exception\n")
    raise InputError("two\nlines")


def test_a_refusal_in_one_line_is_right(tmp_path):
    outcome = run(command(refuse), [], tmp_path)
    outcome.check()
    assert (outcome.code, outcome.err, outcome.changed) == (2, "train.test: no\n", ())


@pytest.mark.parametrize(("work", "what"), [(bug, "exit code 1"), (leave, "left behind"), (chat, "a traceback")])
def test_what_is_wrong_is_noticed(tmp_path, work, what):
    with pytest.raises(AssertionError, match=what):
        run(command(work), [], tmp_path).check()


def test_what_c_writes_is_seen(tmp_path):
    assert run(command(trail), [], tmp_path).err.splitlines()[0].startswith("terminate")


def test_long_work_is_interrupted_and_a_hang_ends_the_test(tmp_path):
    outcome = run(command(lambda args: time.sleep(60)), [], tmp_path, seconds=0.05)
    assert outcome.interrupted
    assert outcome.code == 130

    def deaf(args):
        for _ in range(3):
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                continue

    with pytest.raises(HangError):
        run(command(deaf), [], tmp_path, seconds=0.05, grace=0.05)
