"""Pages, and the blocks in them that are made from results."""

import os
import pathlib
import re
import shlex
from collections.abc import Callable, Mapping

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = "python -m experiments.tables"
PATTERNS = ("*.md", "docs/**/*.md", "experiments/*/README.md", "benchmarks/**/README.md", "examples/**/README.md")
BLOCK = re.compile(r"^<!-- table: (?P<call>[^\n]+?) -->\n(?P<body>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"^<!-- (table: |end -->)", re.MULTILINE)

Maker = Callable[..., str]
"""Returns the content of a block, given the page's path and the options of its marker."""


def pages() -> list[pathlib.Path]:
    """Returns all pages that may have tables of results."""
    return sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)})


def different(tables: Mapping[str, Maker]) -> dict[pathlib.Path, str]:
    """Returns the new text of each page that differs from the committed results."""
    found = {}
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = filled(old, page, tables)
        if new != old:
            found[page] = new
    return found


def filled(text: str, page: pathlib.Path, tables: Mapping[str, Maker]) -> str:
    """Returns the text of a page with every block made from the results."""
    if len(MARK.findall(text)) != 2 * len(BLOCK.findall(text)):
        raise ValueError(f"{page}: expected an `<!-- end -->` after each `<!-- table: ... -->`, each on its own line.")

    def fill(block: re.Match[str]) -> str:
        name, *options = shlex.split(block["call"])
        if name not in tables:
            raise ValueError(f"{page}: expected a table of {', '.join(sorted(tables))}, got {name!r}.")
        given = dict(option.split("=", 1) for option in options)
        try:
            body = tables[name](page, **given)
        except (KeyError, TypeError, FileNotFoundError) as error:
            raise ValueError(f"{page}: the table `{block['call']}` cannot be made: {error!r}.") from error
        return f"<!-- table: {block['call']} -->\n\n{body.strip()}\n\n<!-- end -->"

    return BLOCK.sub(fill, text)


def without_blocks(text: str) -> str:
    """Returns the text of a page that was written by hand."""
    return BLOCK.sub("", text)


def link(text: str, target: pathlib.Path, page: pathlib.Path) -> str:
    """Returns a link of a page to a file of the project, relative to the page."""
    return f"[{text}]({pathlib.PurePath(os.path.relpath(target, page.parent)).as_posix()})"
