"""Section 6 of the design: what a docstring's first line says, and how long it may be."""

import ast
import re

import pytest

from tests.structure import source

FILES = source.files("jaxkd")
REFUSED = re.compile(r"(What|Of|How|Where|Whether)\b")
WORDS = ("quantis", "normalis", "initialis", "optimis", "behaviour", "colour", "centred", "minimis", "maximis")


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


@pytest.mark.parametrize("path", FILES, ids=source.name_of)
def test_the_spelling_is_american(path):
    text = path.read_text(encoding="utf-8").lower()
    assert [word for word in WORDS if word in text] == []
