"""The console script: which command it runs, what it says, and from which folder it takes it."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from commands.errors import missing_module
from ddpm_rt import console
from ddpm_rt.console import COMMANDS, as_called, program_name
from ddpm_rt.own_packages import PACKAGES, command_of_own_process

ROOT = Path(__file__).parents[2]
# The editable installation finds our modules before the path is asked, which a wheel does not.
WITHOUT_EDITABLE = (
    "import sys; sys.meta_path = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]; "
    "sys.argv[0] = 'ddpm-rt'; from ddpm_rt.console import main; sys.exit(main())"
)


@pytest.fixture
def as_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_as_console_script", True)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A user's folder where everything is called as ours is."""
    for name in PACKAGES:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('a {name}.py of the user was imported')")
    for name in ("runtime", "kernels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a folder of the user was imported')")
    return tmp_path


def run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_packages_are_those_of_the_wheel() -> None:
    with_python = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(PACKAGES) == with_python - {"ddpm_rt", "tests"}
    assert all((ROOT / name / "py.typed").is_file() for name in (*PACKAGES, "ddpm_rt"))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(arguments) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^  ddpm-rt {' '.join(command.words)}  +\S", out, re.MULTILINE)


@pytest.mark.parametrize("group", ["export", "bench"])
def test_help_of_a_group_lists_its_own(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main([group, "--help"]) == 0
    listed = re.findall(r"^  ddpm-rt (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert set(listed) == {group}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["--version"]) == 0
    assert re.fullmatch(r"ddpm-rt \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["exprot"],
            "ddpm-rt: no command 'exprot', expected train, fit-table, export, convert, inspect, sample, gather, "
            "sign, serve, bench or --version; see",
        ),
        (["--num", "3"], "ddpm-rt: no command '--num', expected"),
        (["export"], "ddpm-rt export: expected onnx|openvino|trt|triton; see"),
        (["export", "onx", "--fp16"], "ddpm-rt export: found 'onx', expected onnx|openvino|trt|triton; see"),
    ],
)
def test_what_is_no_command(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(says)
    assert err.count("\n") == 1


# Arguments without which a command says nothing else.
_REQUIRED = {
    "export.convert": ["model.pt"],
    "export.inspect": ["unet.onnx"],
    "runtime.sign": ["unet.onnx", "--key", "key.pem"],
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.module)
def test_every_command_speaks_of_itself_as_it_was_called(
    command: console.Command, as_script: None, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, function = command.entry.partition(":")
    assert module.startswith(command.module)
    with pytest.raises(SystemExit) as left:
        getattr(importlib.import_module(module), function)([*_REQUIRED.get(command.module, []), "--no-such-flag"])
    assert left.value.code == 2
    name = f"ddpm-rt {' '.join(command.words)}"
    assert capsys.readouterr().err == f"{name}: unrecognized arguments: --no-such-flag; see `{name} --help`\n"
    with pytest.raises(SystemExit):
        getattr(importlib.import_module(module), function)(["--help"])
    helped = capsys.readouterr().out
    assert helped.startswith(f"usage: {name} ")
    assert f"python -m {command.module}" not in helped


def test_messages_name_the_commands_as_they_were_called(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "make one with `python -m export.to_onnx`, or python -m export.mlp_to_onnx, python -m train.run --out a"
    assert as_called(text) == text
    assert program_name("runtime.sample") == "runtime.sample"
    monkeypatch.setattr(console, "_as_console_script", True)
    expected = "make one with `ddpm-rt export onnx`, or python -m export.mlp_to_onnx, ddpm-rt train --out a"
    assert as_called(text) == expected
    assert program_name("python -m train.run") == "ddpm-rt train"
    assert program_name("train.binary") == "train.binary"


@pytest.mark.parametrize("path", [".", "", None])
def test_folders_of_the_user_that_are_called_as_ours_are_not_imported(hostile: Path, path: str | None) -> None:
    """`python -c` begins with the working directory, as PYTHONPATH="." does; the script itself does not."""
    search = str(ROOT) if path is None else os.pathsep.join([path, str(ROOT)])
    done = run([sys.executable, "-c", WITHOUT_EDITABLE, "export", "openvino", "--help"], hostile, PYTHONPATH=search)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ddpm-rt export openvino ")
    done = run([sys.executable, "-c", WITHOUT_EDITABLE, "sample"], hostile, PYTHONPATH=search)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ddpm-rt sample: unet.onnx: no such file; make one with `ddpm-rt export onnx`\n"


@pytest.mark.parametrize("module", ["runtime.sample", "export.to_openvino", "train.run", "benchmarks.chain"])
def test_python_m_needs_only_its_own_package_to_be_ours(hostile: Path, module: str) -> None:
    """A `train.py` of the user hides `python -m train.run`, and nothing else."""
    for path in (hostile / f"{module.partition('.')[0]}.py", hostile / "runtime"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    as_module = (
        WITHOUT_EDITABLE.partition("sys.argv[0]")[0]
        + "import runpy; runpy.run_module(sys.argv.pop(1), None, '__main__', True)"
    )
    done = run([sys.executable, "-c", as_module, module, "--help"], hostile, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {'python -m ' if module == 'train.run' else ''}{module} ")


@pytest.mark.parametrize("package", ["train", "export", "runtime", "benchmarks"])
def test_a_package_names_every_other_that_it_imports_from(package: str) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / package).rglob("*.py"))
    at_once, ever = (
        set(re.findall(rf"^{indent}(?:from|import) (\w+)", text, re.MULTILINE)) & set(PACKAGES) - {package}
        for indent in ("", " *")
    )
    called = re.search(r"^import_own_packages\((.*)\)$", (ROOT / package / "__init__.py").read_text(), re.MULTILINE)
    assert called is not None
    assert at_once <= set(re.findall(r"\w+", called[1])) <= ever


def test_a_program_that_samples_may_have_a_train_of_its_own(hostile: Path) -> None:
    (hostile / "train.py").write_text("print('the train.py of the user')")
    (hostile / "runtime.py").unlink()
    shutil.rmtree(hostile / "runtime")
    code = WITHOUT_EDITABLE.partition("sys.argv[0]")[0] + "from runtime import Sampler; import train; print(Sampler)"
    done = run([sys.executable, "-c", code], hostile, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["the train.py of the user", "<class 'runtime.sampler.Sampler'>"]


def test_processes_of_our_own_find_our_packages_too(hostile: Path) -> None:
    words = command_of_own_process("benchmarks.chain", "--help")
    done = run(words, hostile, PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    assert "usage: benchmarks.chain" in done.stdout


@pytest.mark.parametrize(
    ("program", "module", "extra"),
    [
        ("runtime.sample", "onnxruntime.capi", "cpu"),
        ("ddpm-rt sample", "openvino", "cpu"),
        ("export.to_onnx", "onnxruntime", "export"),
        ("ddpm-rt export onnx", "torch", "export"),
        ("python -m train.run", "torch", "train"),
        ("ddpm-rt train", "torch", "train"),
        ("benchmarks.kernels", "torch", "bench"),
        ("ddpm-rt bench quality", "sklearn", "bench"),
        ("export.to_trt", "tensorrt_rtx", "rtx"),
        ("runtime.sample", "pycuda", "gpu"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(program: str, module: str, extra: str) -> None:
    message = missing_module(ModuleNotFoundError(f"No module named {module!r}", name=module), program)
    name = module.partition(".")[0]
    assert str(message) == f'needs the module {name!r}, which is not installed; pip install "ddpm-rt[{extra}]"'


def test_a_missing_module_of_our_own_is_a_bug() -> None:
    for name in ("runtime.x", "ddpm_rt.x", "benchmarks"):
        assert missing_module(ModuleNotFoundError(f"No module named {name!r}", name=name), "train.run") is None


def test_processes_of_our_own_need_no_installation(hostile: Path) -> None:
    """As from a checkout: the interpreter that the environment was made with has none of our packages."""
    (hostile / "ddpm_rt.py").write_text("raise SystemExit('a ddpm_rt.py of the user was imported')")
    words = command_of_own_process("commands.program")
    environment = {"PYTHONPATH": ".", "VIRTUAL_ENV": ""}
    done = run([sys._base_executable, *words[1:]], hostile, **environment)  # type: ignore[attr-defined]
    assert (done.returncode, done.stderr) == (0, "")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from ddpm_rt.console import main; main(['--help']); print(*sys.modules)"
    loaded = set(run([sys.executable, "-c", code], ROOT).stdout.rpartition("\n\n")[2].split())
    assert "ddpm_rt.console" in loaded
    assert not loaded & {"numpy", "torch", "onnxruntime", "openvino", "argparse", "PIL", "tqdm"}
