"""README and docs/: commands run as printed, figures are those of committed measurements, the site is whole."""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ddpm_rt.console import COMMANDS
from tests.checkpoints import LEAST, save_tiny_checkpoint
from tests.recorded_lookups import AVAILABLE, WHY_NOT, RecordedLookups

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# In the order in which a newcomer reads them: each command runs in the folder the ones before it ran in.
GUIDE = (
    "README.md",
    *(f"docs/{name}.md" for name in ("index", "your-checkpoint", "export", "sample", "few-calls", "serve", "scale")),
)
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The lines of the blocks that are to be run; a ```console block only shows some."""
    lines = "\n".join(blocks(page, "sh")).splitlines()
    return [re.split(r"\s+#", line)[0].strip() for line in lines if line.strip()]


@pytest.mark.slow
@pytest.mark.skipif(not AVAILABLE, reason=WHY_NOT)
def test_every_command_runs_in_the_order_of_the_pages(tmp_path, tmp_path_factory):
    """No command looks for a host.

    Three changes: training stops after a few steps; few samples in few steps are drawn, since nobody looks at them; and
    when the trained network has been exported once, a smaller one takes its place.
    """
    lookups, digits = RecordedLookups(tmp_path_factory.mktemp("network")), tmp_path / "runs" / "digits"

    def run(*words):
        done, found = lookups.run(*words, cwd=tmp_path, OMP_NUM_THREADS="2")  # one command after the other
        assert (done.returncode, found) == (0, []), f"{shlex.join(words)}\n{done.stdout}{done.stderr}"

    listed = dict.fromkeys(command for page in GUIDE for command in commands(page) if command.startswith("ddpm-rt "))
    assert len(listed) >= 14
    for command in listed:
        words = ["-m", "ddpm_rt", *shlex.split(command)[1:]]
        if words[2] == "train":
            words += ["--steps", "10", "--num-samples", "0"]
        elif words[2] == "sample":
            words += ["--num", "4", *([] if "--steps" in words else ["--steps", "20"])]
        run(*words)
        if words[2:4] == ["export", "onnx"]:
            assert (digits / "model_index.json").exists()
            shutil.rmtree(digits)
            save_tiny_checkpoint(digits, unet=LEAST)
    assert (tmp_path / "samples" / "grid.png").exists()
    for block in dict.fromkeys(block for page in GUIDE for block in blocks(page, "python")):
        run("-c", block)


def test_every_make_target_exists():
    targets = {shlex.split(command)[1] for page in GUIDE for command in commands(page) if command.startswith("make ")}
    targets |= set(re.findall(r"`make ([\w-]+)`", "".join(map(text_of, GUIDE))))
    assert {"demo", "test", "docs"} <= targets
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_command_is_of_a_known_kind():
    assert {command.split()[0] for page in GUIDE for command in commands(page)} <= {"ddpm-rt", "make"}


@functools.cache
def help_of(module: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


def test_the_table_of_commands_is_whole_and_its_flags_exist():
    rows = re.findall(r"^\| `ddpm-rt ([\w -]+)` \| `([\w.]+)` \|(.*)$", text_of("docs/index.md"), re.MULTILINE)
    assert {(words, module) for words, module, _ in rows} == {(" ".join(c.words), c.module) for c in COMMANDS}
    for _, module, text in rows:
        flags = flags_in(text)
        assert not flags or flags <= flags_in(help_of(module)), module


def test_every_flag_that_a_page_shows_exists():
    """On lines that begin with a command: its flags. In tables and sentences: those of any command."""
    modules = {" ".join(command.words): command.module for command in COMMANDS}
    helped = {words: flags_in(help_of(module)) | {"--help"} for words, module in modules.items()}
    any_flag = set().union(*helped.values()) | {"--version"}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for line in page.read_text(encoding="utf-8").splitlines():
            shown = re.match(r"(?:\$ )?ddpm-rt ((?:export |bench )?\w+)", line)
            if shown:
                assert flags_in(line) <= helped.get(shown[1], any_flag), f"{page.name}: {line}"
    for page in GUIDE:
        quoted = {flag for name in re.findall(r"`([^`]+)`", text_of(page)) for flag in flags_in(name)}
        assert quoted - any_flag <= {"--shapes"}, page  # trtexec's


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


# Rows of the table of figures: file, and where in it the figure is.
FIGURE = re.compile(
    r"^\|.*\| \*?\*?([\d.]+)×?\*?\*? \|.*?\[([\w./-]+\.json)\]\(([\w./-]+)\) `([\w.\[\]]+)` \|$", re.MULTILINE
)


def test_every_figure_is_that_of_a_committed_measurement():
    text = text_of("docs/measure.md")
    rows = FIGURE.findall(text)
    table = text[text.index("| what | figure |") :].split("\n\n")[0].splitlines()
    assert len(rows) == len(table) - 2
    for figure, name, path, where in rows:
        assert name == Path(path).name
        report = json.loads((ROOT / "docs" / path).read_text(encoding="utf-8"))
        assert report["command"]
        assert report["machine"]["cpu"]
        value = report
        for key in re.findall(r"\w+", where):
            value = value[int(key)] if isinstance(value, list) else value[key]
        decimals = len(figure.partition(".")[2])
        assert f"{value:.{decimals}f}" == figure, f"{where} in {path} is {value}, the page says {figure}"


PEERS = {
    "ddpm-rt, `unet.xml` in bf16": "ours, OpenVINO bf16",
    "ddpm-rt, `unet.xml` in float32": "ours, OpenVINO",
    "diffusers with torch.compile, bf16": "diffusers + torch.compile, bf16",
    "diffusers with torch.compile": "diffusers + torch.compile",
    "a plain loop over ONNX Runtime with NumPy": "plain ONNX Runtime loop",
}


def test_the_table_against_the_peers_is_that_of_the_measurement():
    report = json.loads((RESULTS / "compare_batch1.json").read_text(encoding="utf-8"))
    assert report["steps"] == 50
    measured = {result["peer"]: result for result in report["results"]}
    rows = re.findall(r"^\| (.+?) \| \*?\*?([\d.]+)×\*?\*? \| ([\d.]+) \|$", text_of("README.md"), re.MULTILINE)
    assert {name for name, _, _ in rows} == set(PEERS)
    for name, speedup, error in rows:
        result = measured[PEERS[name]]
        assert f"{result['speedup']:.2f}" == speedup
        assert f"{result['relative_error']:.{len(error.partition('.')[2])}f}" == error


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_results_say_what_made_them(path):
    report = json.loads(path.read_text(encoding="utf-8"))
    assert {"format", "command", "commit", "machine"} <= set(report)
    assert str(ROOT) not in path.read_text(encoding="utf-8")


# As `make docs`, where nothing outside of this machine can be reached.
BUILD_SITE = """
import socket, sys
def refuse(*arguments):
    raise OSError(f"the site is built without a network, and this was asked for: {arguments}")
socket.getaddrinfo = socket.socket.connect = refuse
from mkdocs.__main__ import cli
cli()
"""


def build_site(config: Path, out: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", BUILD_SITE, "build", "--strict", "--config-file", str(config), "--site-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class References(HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "embed"):
            self.fetched.append(of.get("src") or "")
        if tag == "link" and of.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "dns-prefetch"):
            self.fetched.append(of.get("href") or "")


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    done = build_site(ROOT / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= 20
    for page in pages:
        references = References()
        references.feed(page.read_text(encoding="utf-8"))
        assert not [target for target in references.fetched if re.match(r"(?:\w+:)?//", target)], page
    decisions = {path.stem for path in (ROOT / "docs" / "decisions").glob("*.md")}
    assert decisions == {path.parent.name for path in pages if path.parent.parent.name == "decisions"}
    assert {path.name for path in RESULTS.glob("*.json")} <= set(os.listdir(tmp_path / "site" / "results"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[here](sample.md#sample)", 0),
        ("[gone](nowhere.md)", 1),
        ("[gone](sample.md#nowhere)", 1),
        ("::: runtime.sampler.Nothing", 1),
    ],
)
def test_a_broken_link_fails_the_build(tmp_path, text, code):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Start\n\n{text}\n", encoding="utf-8")
    (tmp_path / "docs" / "sample.md").write_text("# Sample\n", encoding="utf-8")
    settings = (
        text_of("mkdocs.yml").partition("\nnav:")[0].replace("- docs/site_hooks.py", f"- {ROOT}/docs/site_hooks.py")
    )
    settings = settings.replace('paths: ["."]', f'paths: ["{ROOT}"]')
    (tmp_path / "mkdocs.yml").write_text(f"{settings}\nnav:\n  - index.md\n  - sample.md\n", encoding="utf-8")
    done = build_site(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == code, done.stderr
