"""docs/schemes.md: the set-up and, after it, each section's blocks run by themselves."""

import functools
import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "schemes.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^##+ (?P<title>.*)$", re.MULTILINE)


def section_of(place):
    return [m["title"] for m in HEADING.finditer(TEXT, 0, place)][-1]


# Blank lines before it make a traceback's line numbers those of the page.
BLOCKS = [(section_of(m.start()), "\n" * TEXT[: m.start("code")].count("\n") + m["code"]) for m in BLOCK.finditer(TEXT)]
SETUP, *EXAMPLES = BLOCKS


@functools.cache
def prepared():
    return executed(SETUP[1], {"__name__": "page"})


def executed(code, namespace):
    exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("i", range(len(EXAMPLES)), ids=lambda i: f"{EXAMPLES[i][0].split(':')[0]}-{i}")
def test_the_example_runs(i, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    executed(EXAMPLES[i][1], dict(prepared()))  # of its own, so that it needs nothing of another


def test_every_file_that_the_page_links_is_there():
    links = set(re.findall(r"\]\(([^)#:]+)\)", TEXT))
    assert len(links) > 15
    assert not [link for link in links if not (PAGE.parent / link).exists()]
