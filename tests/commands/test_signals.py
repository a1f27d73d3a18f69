"""Signals that end a program: one line, the exit code of the convention, and what is finished is kept."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from commands.errors import StoppedError
from commands.program import make_parser, run_program
from commands.signals import ENDING, interruptions, nothing_ends

PROGRAM = """
import signal, sys, time
from pathlib import Path
from commands.program import make_parser, run_program, say

def main(args):
    try:
        say("begun")
        time.sleep(600)
    finally:
        say("keeping")
        {cleaning}
        Path("kept").touch()

raise SystemExit(run_program(make_parser("tool", "of a test"), main, []))
"""


@contextlib.contextmanager
def started(folder, cleaning="pass", before=None):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM.format(cleaning=cleaning)]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=before
    ) as process:
        assert process.stderr.readline() == "begun\n"
        yield process


@pytest.mark.parametrize("number", ENDING)
def test_one_line_and_128_plus_the_number(tmp_path, number):
    with started(tmp_path) as process:
        process.send_signal(number)
        assert process.stderr.read() == "keeping\ntool: interrupted\n"
    assert process.returncode == 128 + number
    assert os.listdir(tmp_path) == ["kept"]


@pytest.mark.parametrize("number", ENDING)
def test_a_second_one_ends_what_the_first_one_began(tmp_path, number):
    """While things are put in order, which a kill may interrupt anywhere as well."""
    with started(tmp_path, cleaning="time.sleep(600)") as process:
        process.send_signal(number)
        assert process.stderr.readline() == "keeping\n"
        process.send_signal(number)
        assert process.stderr.read() == "tool: interrupted\n"
    assert process.returncode == 128 + number
    assert os.listdir(tmp_path) == []


def test_a_hangup_that_is_ignored_stays_so(tmp_path):
    """As under nohup."""
    with started(tmp_path, before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == "keeping\ntool: interrupted\n"
    assert process.returncode == 128 + signal.SIGTERM


def test_a_stopped_program_goes_on(tmp_path):
    with started(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "keeping\ntool: interrupted\n"
    assert process.returncode == 130


def test_an_answer_to_the_first_is_not_cut_off(monkeypatch, capsys):
    """A second Ctrl-C as the message is written."""
    printed = print

    def late(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        printed(*arguments, **options)

    def main(args):
        monkeypatch.setattr("builtins.print", late)
        raise StoppedError("stopped, kept")

    assert run_program(make_parser("tool", "of a test"), main, []) == 130
    assert capsys.readouterr().err == "tool: stopped, kept\n"


def test_handlers_are_those_of_before_afterwards():
    before = {number: signal.getsignal(number) for number in ENDING}
    with interruptions(), nothing_ends():
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in ENDING)
    assert {number: signal.getsignal(number) for number in ENDING} == before


def test_other_threads_leave_them_alone():
    codes = []
    thread = threading.Thread(
        target=lambda: codes.append(run_program(make_parser("tool", "of a test"), lambda args: {"summary": ""}, []))
    )
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_child_whose_parent_is_gone_before_it_asks(tmp_path):
    """The operating system tells a child only of what happens after it asked to be told."""
    code = "import sys; from commands.signals import end_with_parent; end_with_parent(int(sys.argv[1])); print('lives')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for parent, ended in ((os.getpid(), (0, "lives\n")), (os.getppid(), (-signal.SIGKILL, ""))):
        command = [sys.executable, "-c", code, str(parent)]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (found.returncode, found.stdout) == ended
