"""docs/guides/schemes.md: each Python block runs after the setup block alone."""

import functools
import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "guides" / "schemes.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^##+ (?P<title>.*)$", re.MULTILINE)


def section_at(position):
    return [m["title"] for m in HEADING.finditer(TEXT, 0, position)][-1]


# Blank lines in front give tracebacks the line numbers of the page.
BLOCKS = [(section_at(m.start()), "\n" * TEXT[: m.start("code")].count("\n") + m["code"]) for m in BLOCK.finditer(TEXT)]
SETUP, *EXAMPLES = BLOCKS


@functools.cache
def setup():
    return executed(SETUP[1], {"__name__": "page"})


def executed(code, namespace):
    exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("i", range(len(EXAMPLES)), ids=lambda i: f"{EXAMPLES[i][0].split(':')[0]}-{i}")
def test_example_runs(i, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    executed(EXAMPLES[i][1], dict(setup()))  # a copy, so that blocks are independent


def test_linked_files_exist():
    links = set(re.findall(r"\]\(([^)#:]+)\)", TEXT))
    assert len(links) > 15
    assert not [link for link in links if not (PAGE.parent / link).exists()]
