"""Numbers and tables as Markdown, narrow enough for a page."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.kit import report
from experiments.kit.tasks.task import Measure

COLUMNS = 7  # most columns of a table
FEW = "not enough seeds"
NAMES = 6  # most names of a list

Summary = Mapping[str, Any]  # that of `experiments.kit.statistics.summary`


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """Returns a table in Markdown with typographic minus signs."""
    if len(head) > COLUMNS:
        raise ValueError(f"head: expected at most {COLUMNS} columns, so that the table fits a page, got {len(head)}.")
    shown = [tuple(re.sub(r"(?<![\w.–-])-(?=\d)", "−", cell) for cell in row) for row in rows]
    return report.markdown_table(head, shown, numbers)


def text(summary: Summary | None, scale: float = 1.0, digits: int = 1, sign: bool = False) -> str:
    """Returns a mean with half of its 95% interval; the mean of one seed says so."""
    if summary is None or summary["mean"] is None:
        return report.NONE if summary is None else "not finite"
    spec = f"{'+' if sign else ''}z.{digits}f"
    mean = f"{scale * summary['mean']:{spec}}"
    if summary["half"] == 0 and not sign:
        return mean  # a number that no seed changes, such as the size of a file
    return f"{mean} (1 seed)" if summary["half"] is None else f"{mean} ± {scale * summary['half']:.{digits}f}"


def measured(summary: Summary | None, measure: Measure, sign: bool = False) -> str:
    """Returns a mean in the unit of a measure."""
    return text(summary, measure.scale, measure.digits, sign)


def listed(names: Sequence[str], most: int = NAMES) -> str:
    """Returns names as a list, cut where it becomes long.

    >>> listed(["a", "b", "c"], 2), listed([])
    ('a; b; 1 more', '–')
    """
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return "; ".join([*names[:most], *more]) or report.NONE
