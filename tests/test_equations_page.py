"""docs/equations.md against the code: files and names exist, and every equation that the code cites is on the page."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "equations.md"
SOURCES = ("commands", "diffusion", "export", "kernels", "runtime", "train")

AUTHORS_YEAR = re.compile(r"[A-Z][\w-]+(?: et al\.| & [A-Z][\w-]+)? (?:19|20)\d\d")
NUMBER = r"\d+(?:\.\d+)?"
EQUATION = re.compile(rf"\b[Ee]q(?:n?s?\.?|uations?) ?\(?({NUMBER}(?:(?:, | and |, and |[-–]){NUMBER})*)")
SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z])")


class TableRow(NamedTuple):
    """A row of a table that maps to code."""

    line: int
    names: list[str]
    files: list[str]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def in_backticks(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def table_rows(text: str) -> Iterator[TableRow]:
    """The rows of all tables that have the columns `Name in code` and `File`."""
    header: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells(line)
        elif not set(line) <= set("|-: ") and {"Name in code", "File"} <= set(header):
            row = cells(line)
            assert len(row) == len(header), f"line {number} has {len(row)} cells, its header {len(header)}"
            fields = dict(zip(header, row, strict=True))
            yield TableRow(number, in_backticks(fields["Name in code"]), in_backticks(fields["File"]))


def python_definitions(text: str) -> set[str]:
    """Functions, classes, constants, parameters, `Class.member` and, in double quotes, string literals."""
    tree = ast.parse(text)
    found = {target for node in tree.body for target in assigned(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            found |= {node.name, *(a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))}
        elif isinstance(node, ast.ClassDef):
            members = {name for statement in node.body for name in assigned(statement)}
            members |= {statement.name for statement in node.body if isinstance(statement, ast.FunctionDef)}
            members |= {name for inner in ast.walk(node) for name in assigned(inner, of_self=True)}
            found |= {node.name} | {f"{node.name}.{member}" for member in members}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(f'"{node.value}"')
    return found


def assigned(node: ast.AST, of_self: bool = False) -> set[str]:
    """What a statement assigns to: plain names, or attributes of self."""
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return set()
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    if of_self:
        return {t.attr for t in flat if isinstance(t, ast.Attribute) and ast.unparse(t.value) == "self"}
    return {t.id for t in flat if isinstance(t, ast.Name)}


def cpp_definitions(text: str) -> set[str]:
    """Structs, classes and functions defined in a header."""
    functions = re.findall(r"^(?:DDPM_RT_INLINE|inline|static|constexpr)\b[^;{(=]*?\b(\w+)\(", text, re.MULTILINE)
    return set(functions) | set(re.findall(r"^(?:struct|class) (\w+)", text, re.MULTILINE))


@cache
def definitions(file: str) -> set[str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return python_definitions(text) if file.endswith(".py") else cpp_definitions(text)


def comment_blocks(path: Path) -> Iterator[str]:
    """Each string literal and each run of comment lines of a source file, on one line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix not in (".py", ".pyi"):
        for run in re.findall(r"(?:^[ \t]*//.*\n)+|//.*", text, re.MULTILINE):
            yield " ".join(re.sub(r"^[ \t]*//", "", run, flags=re.MULTILINE).split())
        return
    run: list[str] = []
    last_line = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.STRING:
            yield " ".join(token.string.strip("\"'").split())
        elif token.type == tokenize.COMMENT:
            on_its_own = not token.line[: token.start[1]].strip()
            if not (on_its_own and token.start[0] == last_line + 1):
                yield " ".join(run)
                run = []
            run.append(token.string.lstrip("# "))
            last_line = token.start[0] if on_its_own else 0
    yield " ".join(run)


def cited_equations(block: str) -> Iterator[tuple[str | None, str]]:
    """(authors and year, number) of every equation in a text; None where its sentence names no paper."""
    for sentence in SENTENCE_END.split(block):
        papers = list(AUTHORS_YEAR.finditer(sentence))
        for match in EQUATION.finditer(sentence):
            before = [paper.group() for paper in papers if paper.end() <= match.start()]
            after = [paper.group() for paper in papers if sentence[match.end() : paper.start()] == " of "]
            paper = (after or before[-1:] or [None])[0]
            for number in re.findall(NUMBER, match.group(1)):
                yield paper, number


def source_files() -> list[Path]:
    suffixes = (".py", ".pyi", ".h", ".cpp", ".cu")
    return sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


def page_text() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("row", list(table_rows(page_text())), ids=lambda row: f"line {row.line}")
def test_names_are_defined_in_their_files(row):
    assert row.names
    assert row.files
    missing = [file for file in row.files if not (ROOT / file).is_file()]
    assert not missing, f"{PAGE.name}:{row.line}: no such file"
    nowhere = [name for name in row.names if not any(name in definitions(file) for file in row.files)]
    assert not nowhere, f"{PAGE.name}:{row.line}: defined in none of {row.files}"
    needless = [file for file in row.files if not definitions(file) & set(row.names)]
    assert not needless, f"{PAGE.name}:{row.line}: defines none of {row.names}"


def test_names_and_files_between_the_tables_exist():
    quoted = {name for name in in_backticks(re.sub(r"```.*?```", "", page_text(), flags=re.DOTALL)) if '"' not in name}
    files = {name for name in quoted if "/" in name}
    assert {file for file in files if not (ROOT / file).is_file()} == set()
    words = {word for file in files for word in re.findall(r"\w+", (ROOT / file).read_text(encoding="utf-8"))}
    assert {word for name in quoted - files for word in re.findall(r"[A-Za-z_]\w*", name)} <= words


def test_every_equation_cited_in_the_code_names_its_paper():
    bare = [
        f"{path.relative_to(ROOT)}: eq. {number} in {block[:160]!r}"
        for path in source_files()
        for block in comment_blocks(path)
        for paper, number in cited_equations(block)
        if paper is None
    ]
    assert not bare, "say whose equation it is, as in 'Ho et al. 2020, eq. 7'"


def test_every_equation_of_a_listed_paper_that_the_code_cites_is_on_the_page():
    """Papers that the page does not list, of a solver or a layer, may be cited by their own file alone."""
    lines = page_text().splitlines()
    listed = {
        match.group() for line in lines if "](https://" in line for match in AUTHORS_YEAR.finditer(cells(line)[0])
    }
    unwrapped = re.sub(r"\n(?=[^\n|#`-])", " ", page_text())
    on_page = {citation for line in unwrapped.splitlines() for citation in cited_equations(line)}
    assert not [number for paper, number in on_page if paper is None]
    cited = {
        (paper, number)
        for path in source_files()
        for block in comment_blocks(path)
        for paper, number in cited_equations(block)
        if paper in listed
    }
    assert {("Ho et al. 2020", "7"), ("Ho et al. 2020", "14"), ("Luo 2022", "151")} <= cited  # the search finds some
    assert cited - on_page == set(), f"add these to {PAGE.relative_to(ROOT)}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("which leaves eq. 11", [(None, "11")]),
        ("the mean (Ho et al. 2020, eqs. 6 and 7)", [("Ho et al. 2020", "6"), ("Ho et al. 2020", "7")]),
        ("eq. 14 of Ho et al. 2020 sums", [("Ho et al. 2020", "14")]),
        ("Ho et al. 2020, eq. 15; Luo 2022, eq. 115", [("Ho et al. 2020", "15"), ("Luo 2022", "115")]),
        ("See Ho et al. 2020. Then comes Equation (7)", [(None, "7")]),
        ("@dataclass(frozen=True, eq=False), required 3", []),
    ],
)
def test_citations_are_told_from_bare_numbers(text, expected):
    assert list(cited_equations(text)) == expected
