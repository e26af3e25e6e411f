"""Rule 2 of the design: nothing is written twice. Two functions of one shape are one function too many."""

import ast
import collections

from tests.structure import source

SMALLEST = 40  # nodes of a syntax tree; smaller functions are idioms rather than helpers


class _Anonymous(ast.NodeTransformer):
    """Replaces a function's own names by their order of appearance, and drops what does not compute."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def _name(self, name: str) -> str:
        return self.names.setdefault(name, f"n{len(self.names)}")

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self._name(node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self._name(node.arg))


def shape_of(function: ast.FunctionDef) -> str | None:
    """Returns a function's computation without names, annotations and docstring; None for a small function."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    if sum(1 for node in (function.args, *body) for _ in ast.walk(node)) < SMALLEST:
        return None
    copy = ast.parse(ast.unparse(ast.FunctionDef("f", function.args, body, [], lineno=1)))
    for node in ast.walk(copy):
        if isinstance(node, ast.AnnAssign | ast.arg):
            node.annotation = ast.Constant(None)
    if sum(1 for _ in ast.walk(copy)) < SMALLEST:
        return None
    return ast.dump(_Anonymous().visit(copy))


def functions(node):
    """Yields the functions of a syntax tree, nested ones included; methods belong to their class's contract."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and not isinstance(node, ast.ClassDef):
            yield child
        yield from functions(child)


def test_no_function_is_written_twice():
    places = collections.defaultdict(list)
    for path in source.files("jaxkd"):
        for node in functions(source.tree_of(path)):
            if shape := shape_of(node):
                places[shape].append(f"{source.name_of(path)}: {node.name}")
    assert [found for found in places.values() if len(found) > 1] == []
