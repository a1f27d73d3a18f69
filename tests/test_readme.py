"""README's commands run as they are printed, its figures are those of the committed measurements."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("sh")).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def run(words: list[str], folder: Path) -> None:
    # Two threads: these run one after the other, and the first trains.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"


def test_every_python_command_runs_in_the_order_of_the_page(tmp_path):
    """Two changes: training stops after a few steps, and few samples are drawn, at which nobody looks."""
    listed = [command for command in commands() if command.startswith("python ")]
    assert len(listed) >= 6
    for command in listed:
        words = [sys.executable, *shlex.split(command)[1:]]
        if "train.run" in words:
            words += ["--steps", "10", "--num-samples", "0"]
        elif "runtime.sample" in words:
            words += ["--num", "4"]
        run(words, tmp_path)
    assert (tmp_path / "runs" / "digits" / "model_index.json").exists()
    assert (tmp_path / "samples" / "grid.png").exists()
    for block in blocks("python"):
        run([sys.executable, "-c", block], tmp_path)


def test_every_make_target_exists():
    targets = [shlex.split(command)[1] for command in commands() if command.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_command_is_of_a_known_kind():
    assert {command.split()[0] for command in commands()} <= {"python", "make"}


def test_every_flag_named_in_the_table_exists():
    for module, text in re.findall(r"^\| `python -m ([\w.]+)` \|(.*)$", README, re.MULTILINE):
        flags = set(re.findall(r"`(--[\w-]+)", text))
        if not flags:
            continue
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        missing = {flag for flag in flags if flag not in done.stdout}
        assert not missing, f"{module}: {missing}"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


# Rows of README's table of figures: file, and where in it the figure is.
FIGURE = re.compile(
    r"^\|.*\| \*?\*?([\d.]+)×?\*?\*? \|.*?\[([\w./-]+\.json)\]\(([\w./-]+)\) `([\w.\[\]]+)` \|$", re.MULTILINE
)


def test_every_figure_is_that_of_a_committed_measurement():
    rows = FIGURE.findall(README)
    assert rows
    for figure, name, path, where in rows:
        assert name == Path(path).name
        report = json.loads((ROOT / path).read_text(encoding="utf-8"))
        assert report["command"]
        assert report["machine"]["cpu"]
        value = report
        for key in re.findall(r"\w+", where):
            value = value[int(key)] if isinstance(value, list) else value[key]
        decimals = len(figure.partition(".")[2])
        assert f"{value:.{decimals}f}" == figure, f"{where} in {path} is {value}, README says {figure}"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_results_say_what_made_them(path):
    report = json.loads(path.read_text(encoding="utf-8"))
    assert {"format", "command", "commit", "machine"} <= set(report)
    assert str(ROOT) not in path.read_text(encoding="utf-8")
