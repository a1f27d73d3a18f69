"""Exit codes, one-line errors, and what goes to which stream."""

import importlib
import io
import json
import os
import subprocess
import sys

import pytest

from commands.errors import DeviceUnavailableError, StoppedError, VerificationError
from commands.program import let_output_be_plain, make_parser, run_program
from diffusion.errors import InputError


def run(main, *argv: str) -> int:
    parser = make_parser("tool", "For a test.")
    parser.add_argument("--size", type=int, default=3)
    return run_program(parser, main, argv)


def raising(error: BaseException):
    def main(args):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (InputError("size is 4, expected 3"), 2, "tool: size is 4, expected 3\n"),
        (InputError("two\n  lines"), 2, "tool: two lines\n"),
        (
            InputError("`size` is 4, `x` 5; give `size=3`, or `json=True`"),
            2,
            "tool: --size is 4, `x` 5; give --size 3, or --json\n",
        ),
        (VerificationError("wrong:\n t  error\n 0  0.5"), 3, "tool: wrong:\n t  error\n 0  0.5\n"),
        (DeviceUnavailableError("no GPU"), 4, "tool: no GPU\n"),
        (
            ModuleNotFoundError("No module named 'onnx'", name="onnx"),
            4,
            "tool: needs the module 'onnx', which is not installed; pip install \"ddpm-rt[cpu]\"\n",
        ),
        (
            ModuleNotFoundError("No module named 'runtime.x'", name="runtime.x"),
            1,
            "tool: ModuleNotFoundError: No module named 'runtime.x' "
            "(a bug: please report it with the output of --debug)\n",
        ),
        (StoppedError("stopped, kept"), 130, "tool: stopped, kept\n"),
        (KeyboardInterrupt(), 130, "tool: interrupted\n"),
        (
            OSError(36, "File name too long", "n.onnx"),
            2,
            "tool: n.onnx: File name too long; name another file, or make this one usable\n",
        ),
        (
            OSError(5, "Input/output error"),
            1,
            "tool: OSError: [Errno 5] Input/output error (a bug: please report it with the output of --debug)\n",
        ),
        (KeyError("x"), 1, "tool: KeyError: 'x' (a bug: please report it with the output of --debug)\n"),
    ],
)
def test_errors_have_their_exit_codes(error, code, says, capsys):
    assert run(raising(error)) == code
    assert capsys.readouterr() == ("", says)


def test_a_bug_shows_its_traceback_under_debug(capsys):
    assert run(raising(KeyError("x")), "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_report_is_a_summary_or_one_json_object(capsys):
    def main(args):
        return {"summary": f"size {args.size}: out/", "size": args.size}

    assert run(main) == 0
    assert capsys.readouterr() == ("size 3: out/\n", "")
    assert run(main, "--json", "--size", "5") == 0
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"size": 5}, "")


def test_a_reader_of_standard_error_that_goes_away_costs_messages_alone(tmp_path):
    """In the middle of a run, which goes on to its end; what C libraries and children say does not end it either."""
    code = """
import os, subprocess, sys
from pathlib import Path
from commands.program import make_parser, run_program, say
from commands.progress import progress_bar

def main(args):
    say("begun")
    sys.stdin.read()
    for number in range(3):
        say("lost")
    with progress_bar(3, "work", lines_in_a_log=True) as bar:
        bar.update(3)
    os.write(2, b"as a library")
    subprocess.run(["sh", "-c", "echo child >&2 && touch child"], check=True)
    Path("done").touch()
    return {"summary": "the result"}

raise SystemExit(run_program(make_parser("tool", "of a test"), main, []))"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, **pipes) as process:
        assert process.stderr.readline() == b"begun\n"
        process.stderr.close()
        process.stdin.close()
        assert process.stdout.read() == b"the result\n"
    assert process.returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["child", "done"]


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize("size", [10, 10**6])  # of a report that is still in a buffer at exit, and of one that is not
def test_a_closed_pipe_ends_quietly(size, flags):
    program = (
        "from commands.program import make_parser, run_program\n"
        f"report = {{'summary': 'x' * {size}, 'more': 'y' * {size}}}\n"
        "raise SystemExit(run_program(make_parser('tool', 'of a test'), lambda args: report))"
    )
    command = [sys.executable, "-c", program, *flags]
    # Unbuffered, there would be nothing left to complain of at exit.
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.close()  # before there is anything to read
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_usage_errors_are_one_line_with_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        run(lambda args: {}, "--size", "x")
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err == "tool: argument --size: invalid int value: 'x'; see `tool --help`\n"


@pytest.mark.parametrize(("full", "code"), [("stdout", 2), ("stderr", 0)])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_output_on_a_full_disk_is_no_bug(full, code, flags, tmp_path):
    program = (
        "import resource\n"
        "from commands.program import make_parser, run_program, say\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"  # a regular file takes no byte; pipes are not limited
        "raise SystemExit(run_program(make_parser('tool', 'of a test'), lambda args: say('s') or {'summary': 'x'}))"
    )
    with (tmp_path / "full").open("w") as file:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {full: file}
        command = [sys.executable, "-B", "-c", program, *flags]  # -B: bytecode is a file as well
        ended = subprocess.run(command, text=True, check=False, **streams)
    assert (ended.returncode, (tmp_path / "full").stat().st_size) == (code, 0)
    if full == "stdout":
        assert ended.stderr.startswith("s\ntool: standard output cannot be written (File too large)")
        assert ended.stderr.count("\n") == 2


def test_too_little_memory_is_no_bug(capsys):
    def main(args):
        raise MemoryError("Unable to allocate 233. TiB")

    assert run(main) == 2
    err = capsys.readouterr().err
    assert err == "tool: too little memory (Unable to allocate 233. TiB); ask for less at once\n"


COMMANDS = [
    "train.run", "train.swiss_roll", "train.binary", "export.to_onnx", "export.to_openvino", "export.to_trt",
    "export.mlp_to_onnx", "runtime.sample", "runtime.sample_bits", "benchmarks.compare.__main__",
    "benchmarks.kernels", "benchmarks.likelihood.__main__", "benchmarks.quality.__main__", "benchmarks.report.__main__",
    "benchmarks.swiss_roll", "benchmarks.gpu_check.command", "benchmarks.device.command",
]  # fmt: skip


def ascii_output(monkeypatch: pytest.MonkeyPatch) -> io.TextIOWrapper:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", output)
    return output


def written(output: io.TextIOWrapper) -> str:
    assert isinstance(output.buffer, io.BytesIO)
    return output.buffer.getvalue().decode("ascii")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_in_ascii(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = ascii_output(monkeypatch)
    module = importlib.import_module(command)
    main = module.run if command == "train.run" else module.main
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "--json" in written(output)


def test_the_nearest_words(monkeypatch: pytest.MonkeyPatch) -> None:
    output = ascii_output(monkeypatch)
    let_output_be_plain()
    print("0 to T−1, 8.6,8.9,… N×C ≤ é ß \udcff 🎲")
    assert written(output) == "0 to T-1, 8.6,8.9,... NxC <= e \\xdf \\udcff \\U0001f3b2\n"


def test_a_program_with_such_a_terminal() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = [sys.executable, "-m", "export.to_trt", "--help"]
    done = subprocess.run(run, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"8.6,8.9,..." in done.stdout


def test_a_usage_error_is_one_line_whatever_was_given(capsys):
    with pytest.raises(SystemExit, match="2"):
        make_parser("tool", "of a test").parse_args(["new\nline"])
    assert capsys.readouterr().err == "tool: unrecognized arguments: new line; see `tool --help`\n"


def test_a_closed_standard_stream_is_no_file_of_ours(tmp_path):
    """The file opened next would have its number, and get what libraries print there."""
    code = """
import os, sys
from commands.program import make_parser, run_program, say

def main(args):
    with open("result", "w") as file:
        say("a message")
        os.write(1, b"a library")
        os.write(2, b"another")
        file.write("whole")
    return {"summary": "done"}

sys.exit(run_program(make_parser("tool", ""), main, []))
"""
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode == 0
    assert (tmp_path / "result").read_text() == "whole"
