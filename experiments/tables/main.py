"""The command: fills the tables of all pages, or compares them with what it would write."""

import argparse
from collections.abc import Mapping, Sequence

from experiments.tables import choice, fields, overview, pages, speed
from experiments.tables.pages import Maker

TABLES: Mapping[str, Maker] = {**fields.TABLES, **overview.TABLES, **speed.TABLES, **choice.TABLES}


def cli(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 if a page differs with ``--check``."""
    parser = argparse.ArgumentParser(prog=pages.COMMAND, description="Fill the tables of pages from committed results.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page differs")
    check = parser.parse_args(arguments).check
    different = pages.different(TABLES)
    for page, text in different.items():
        print(f"{page.relative_to(pages.ROOT)}: {'differs from the committed results' if check else 'written'}")
        if not check:
            page.write_text(text, encoding="utf-8")
    if check and different:
        print(f"To write them: {pages.COMMAND}")
    return int(check and bool(different))
