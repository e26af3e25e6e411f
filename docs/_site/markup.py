"""Docstrings in the form that the site's Markdown renders.

The docstrings are written for a terminal: names in single backticks, examples of doctest without a fence, and tables of
two or three columns between rows of ``=``. Here the first become links, the second blocks of code and the third tables.
The lines of "Returns" are one text.
"""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import names

_NAME = re.compile(r"(?<![`\w\]\[])`([A-Za-z_][\w.]*)`(?![`\]])")
_BORDER = re.compile(r"^=+(  +=+)+$")


def rewrite(text: str) -> str:
    """Returns a docstring as Markdown."""
    return _NAME.sub(_link, _fenced(_tables(_continued(text))))


def _link(match: re.Match[str]) -> str:
    target = names.targets().get(match[1])
    return match[0] if target is None else f"[`{match[1]}`][{target}]"


def _continued(text: str) -> str:
    """Indents what continues the first line of "Returns" or "Yields", where griffe reads each line as another item."""
    lines, first = [], None
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip())
        if line.strip() in ("Returns:", "Yields:"):
            first = -1
        elif line.strip() and first is not None:
            if first < 0:
                first = indent
            elif indent < first:
                first = None
            else:
                line = " " * first + line
        lines.append(line)
    return "\n".join(lines)


def _fenced(text: str) -> str:
    """Puts the examples of doctest into blocks of code."""
    lines: list[str] = []
    inside = fenced = False
    for line in text.split("\n"):
        bare = line.strip()
        if bare.startswith(("```", "~~~")):
            fenced = not fenced
        if not fenced and not inside and bare.startswith(">>> "):
            indent = line[: len(line) - len(line.lstrip())]
            lines += [*([""] if lines and lines[-1].strip() else []), f"{indent}```pycon"]
            inside = True
        elif inside and not bare:
            lines.append(f"{indent}```")
            inside = False
        lines.append(line)
    return "\n".join([*lines, *([f"{indent}```"] if inside else [])])


def _tables(text: str) -> str:
    """Turns tables between rows of ``=`` into Markdown's."""
    lines, table, starts = [], None, []
    for line in text.split("\n"):
        if _BORDER.match(line.strip()) and table is None:
            table, starts = [], [match.start() for match in re.finditer("=+", line)]
        elif table is not None and _BORDER.match(line.strip()):
            lines += _markdown(table)
            table = None
        elif table is not None:
            _add_row(table, line, starts)
        else:
            lines.append(line)
    return "\n".join(lines)


def _add_row(table: list[list[str]], line: str, starts: list[int]) -> None:
    """Adds a row to a table, or continues its last row."""
    cells = [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
    if table and (not cells[0] or not any(cells[1:]) or table[-1][0].endswith(",")):
        if cells[0] and not table[-1][0].endswith(","):
            cells[0] = f", {cells[0]}"
        table[-1] = [f"{old} {new}".strip().replace(" , ", ", ") for old, new in zip(table[-1], cells, strict=True)]
    else:
        table.append(cells)


def _markdown(table: list[list[str]]) -> list[str]:
    """Returns the lines of a Markdown table without a header."""
    columns = len(table[0])
    rows = [["" for _ in range(columns)], ["---"] * columns, *table]
    return ["", *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows), ""]
