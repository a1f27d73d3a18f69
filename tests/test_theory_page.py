"""docs/theory.md: its names are in the code, its equations are on docs/equations.md, and it stays short."""

import re

from tests.test_equations_page import ROOT, SOURCES, cited_equations, in_backticks, page_text

TEXT = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")


def test_every_name_is_somewhere_in_the_code():
    code = [path for folder in (*SOURCES, "benchmarks", "tests/diffusion") for path in (ROOT / folder).rglob("*.py")]
    words = {word for path in code for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    names = {name for name in in_backticks(TEXT) if not name.startswith(("python ", "--"))}
    assert len(names) > 30
    assert {word for name in names for word in re.findall(r"\w+", name)} - words == set()


def test_its_flags_are_those_of_the_command():
    flags = {name for name in in_backticks(TEXT) if name.startswith("--")}
    files = ("benchmarks/likelihood/__main__.py", "runtime/process_flags.py")
    command = "".join((ROOT / file).read_text() for file in files)
    assert flags == {"--against", "--variance-type"}
    assert all(f'"{flag}"' in command for flag in flags)


def test_its_equations_are_on_the_other_page():
    def citations(text):
        text = re.sub(r"\n(?=[^\n|#`\- ])", " ", text)
        return {citation for line in text.splitlines() for citation in cited_equations(line)}

    cited = citations(TEXT)
    assert ("Luo 2022", "45") in cited
    assert all(paper for paper, _ in cited)
    assert cited - citations(page_text()) == set()


def test_it_is_short():
    assert TEXT.count("\n") <= 250
