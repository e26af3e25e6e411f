"""The source of the project as syntax trees: what the tests of its structure read."""

import ast
import functools
import pathlib
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUTSIDE = ("experiments", "benchmarks", "examples")  # folders that may use public names only


class Import(NamedTuple):
    """One imported name: ``module`` is absolute, ``name`` is None for ``import module``."""

    module: str
    name: str | None
    where: str  # "top", "inner" (in a function) or "typing" (for a type checker only)

    @property
    def dotted(self) -> str:
        return self.module if self.name is None else f"{self.module}.{self.name}"


def files(folder: str) -> list[pathlib.Path]:
    """Returns the Python files below a folder of the project, sorted."""
    return sorted((ROOT / folder).rglob("*.py"))


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: pathlib.Path) -> str:
    """Returns the dotted module that a file defines."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_module(dotted: str) -> bool:
    path = ROOT / dotted.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


@functools.cache
def imports_of(path: pathlib.Path) -> tuple[Import, ...]:
    """Returns every import of a file, relative ones made absolute."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, where: str):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, None, where) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = package.split(".")
                    base = ".".join([*parts[: len(parts) - child.level + 1], *([base] if base else [])])
                yield from (Import(base, alias.name, where) for alias in child.names)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from visit(child, "inner")
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, "typing")
            else:
                yield from visit(child, where)

    return tuple(visit(tree_of(path), "top"))


@functools.cache
def public_names(package: str) -> tuple[str, ...]:
    """Returns the ``__all__`` of a package or module, () where there is none."""
    base = ROOT / package.replace(".", "/")
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not path.is_file():
        return ()
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()


def packages() -> list[str]:
    """Returns the packages directly below ``jaxkd`` that users see."""
    folders = sorted(path.parent.name for path in (ROOT / "jaxkd").glob("*/__init__.py"))
    return [f"jaxkd.{name}" for name in folders if not name.startswith("_")]
