"""Section 6 of the design: what a docstring's first line says, and how long it may be."""

import ast
import pathlib
import re

import pytest

from tests.structure import source

FILES = source.files("jaxkd")
REFUSED = re.compile(r"(What|Of|How|Where|Whether)\b")
PAGES = [source.ROOT / "README.md", *sorted((source.ROOT / "docs").rglob("*.md"))]
BRITISH = re.compile(
    r"(quant|normal|initial|optim|minim|maxim|general|regular|synchron|serial|vector|factor|parametr|penal|organ|summar"
    r"|special|recogn)is(e|ed|es|ing|ation)\b|behaviour|colour|centred|centre\b|neighbour|favour|grey|analyse|labelled"
    r"|modelling|cancelled|catalogue"
)
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def docstrings(path):
    for node in ast.walk(source.tree_of(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", source.name_of(path)), text


@pytest.mark.parametrize("path", FILES, ids=source.name_of)
def test_a_summary_says_what_a_function_returns_or_does(path):
    for name, text in docstrings(path):
        summary = text.split("\n")[0]
        assert not REFUSED.match(summary), f"{source.name_of(path)}, {name}: {summary!r}"
        assert len(summary) <= 80, f"{source.name_of(path)}, {name}: {len(summary)} characters: {summary!r}"


@pytest.mark.parametrize("path", [*FILES, *PAGES], ids=source.name_of)
def test_the_spelling_is_american(path):
    assert british(path) == []


@pytest.mark.parametrize("folder", ["benchmarks", "experiments", "tests"])
def test_the_spelling_of_other_code_is_american(folder):
    own = pathlib.Path(__file__).resolve()
    found = {source.name_of(path): british(path) for path in source.files(folder) if path != own}
    assert {name: words for name, words in found.items() if words} == {}


def british(path):
    return [found[0] for found in BRITISH.finditer(path.read_text(encoding="utf-8").lower())]


@pytest.mark.parametrize("page", PAGES, ids=source.name_of)
def test_a_table_of_a_page_has_a_header(page):
    """Without one, Markdown shows its rows as text."""
    before = ""
    for line in CODE.sub("", page.read_text(encoding="utf-8")).splitlines():
        if re.fullmatch(r"\|(:?-+:?\|)+", line):
            assert before.count("|") == line.count("|"), f"{source.name_of(page)}: {before!r} above {line!r}"
        before = line


@pytest.mark.parametrize("page", PAGES, ids=source.name_of)
def test_a_page_uses_public_names_only(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"jaxkd(?:\.\w+)*\._\w+|from jaxkd[.\w]* import _\w+", text) == []


def test_the_table_of_a_package_lists_its_public_names():
    """Packages whose docstring is a table of their names; those of the subpackages' names refer to them."""
    for path in FILES:
        if path.name != "__init__.py":
            continue
        text = ast.get_docstring(source.tree_of(path)) or ""
        package = source.module_of(path)
        if "====" not in text or package in ("jaxkd", "jaxkd.data", "jaxkd.models", "jaxkd.models.vision"):
            continue
        listed = {name.rpartition(".")[2] for name in re.findall(r"`~?([\w.]+)`", text)}
        lacking = [name for name in source.public_names(package) if name not in listed and not name.isupper()]
        assert not lacking, f"{source.name_of(path)}: {lacking}"
