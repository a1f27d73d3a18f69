"""Small changes of a module's code, each of which some test should notice."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A module with one change.

    Attributes:
        file: of the module, relative to the project.
        line: of the change.
        change: what it is, in words.
        source: of the whole module, changed.
    """

    file: str
    line: int
    change: str
    source: str

    @property
    def name(self) -> str:
        """To tell it by."""
        return f"{self.file}:{self.line}: {self.change}"


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Every change of a module that is made here, in the order of its lines."""
    tree = ast.parse(source)
    found = []
    for number, (node, change) in enumerate(_places(tree)):
        changed = copy.deepcopy(tree)
        twin, _ = list(_places(changed))[number]
        before = ast.unparse(twin)
        _apply(changed, twin, change)
        after = "pass" if change == "raise" else ast.unparse(twin)
        text = f"{_short(before)} -> {_short(after)}"
        found.append(Mutant(file, node.lineno, text, ast.unparse(ast.fix_missing_locations(changed)) + "\n"))
    return sorted(found, key=lambda each: each.line)


def _places(tree: ast.Module) -> Iterator[tuple[ast.AST, object]]:
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        # Texts of messages, types, and what decorators say are not behaviour that a test of it should pin.
        for inner in _unchanged(node):
            skipped |= {id(each) for each in ast.walk(inner)}
        yield from _changes(node)


def _unchanged(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
        yield node
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield from node.decorator_list
    if isinstance(node, ast.FunctionDef):
        yield from filter(None, [node.returns])
        yield from filter(None, [each.annotation for each in (*node.args.args, *node.args.kwonlyargs)])
    if isinstance(node, ast.AnnAssign):
        yield node.annotation
    if isinstance(node, ast.Raise):
        yield from ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        yield node
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "TypeVar":
        yield node


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, object]]:
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            if type(operator) in _COMPARE:
                yield node, ("compare", place)
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _ARITHMETIC:
        yield node, "arithmetic"
    elif isinstance(node, ast.BoolOp):
        yield node, "and or"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node, "unary"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield node, "constant"
    elif isinstance(node, ast.Raise):
        yield node, "raise"


def _apply(tree: ast.Module, node: ast.AST, change: object) -> None:
    if isinstance(change, tuple):
        node.ops[change[1]] = _COMPARE[type(node.ops[change[1]])]()
    elif change == "arithmetic":
        node.op = _ARITHMETIC[type(node.op)]()
    elif change == "and or":
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif change == "unary":
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
    elif change == "constant":
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
    else:
        _Without(node).visit(tree)


class _Without(ast.NodeTransformer):
    """`pass` in the place of a statement."""

    def __init__(self, node: ast.AST) -> None:
        self._node = node

    def visit(self, node: ast.AST) -> ast.AST:
        """As the base class's."""
        return ast.copy_location(ast.Pass(), node) if node is self._node else self.generic_visit(node)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else line[:67] + "..."
