"""Tables in Markdown and for the terminal, and numbers as text.

A number that is None, which also stands for NaN, is never printed as a number.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

Row = tuple[str, ...]
NONE = "–"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """Returns a table in Markdown, with columns of numbers aligned to the right.

    >>> print(markdown_table(("method", "%"), [("kd", "1.5")]))
    | method | % |
    | --- | ---: |
    | kd | 1.5 |
    """
    marks = ("---", *("---:" if numbers else "---",) * (len(head) - 1))
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *rows])


class TerminalTable:
    """A table for a terminal, in as many parts below each other as its width needs.

    Each part begins with the first column, whose texts may be wrapped; no number is. A row that is None is a line
    between sections. Cells may have rich's markup.
    """

    def __init__(self, title: str, head: Sequence[str], rows: Iterable[Sequence[str] | None], note: str = "") -> None:
        self.title, self.head, self.rows, self.note = title, head, list(rows), note

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="bold")
        for part in self.parts(options.max_width):
            shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
            for i, width in part.items():
                shown.add_column(self.head[i], justify="right" if i else "left", width=width)
            for row in self.rows:
                shown.add_section() if row is None else shown.add_row(*(row[i] for i in part))
            yield ""
            yield shown
        yield f"\n{self.note}" if self.note else ""

    def parts(self, width: int) -> list[dict[int, int]]:
        """Returns the numbers and widths of the columns of each part."""
        cells = [[self._length(row[i]) for row in self.rows if row is not None] for i in range(len(self.head))]
        words = [max(map(len, head.split()), default=1) for head in self.head]
        needed = [max([*column, word]) for column, word in zip(cells, words, strict=True)]
        needed[0] = min(needed[0], max(width // 3, words[0]))
        found = [{0: needed[0]}]
        for i in range(1, len(needed)):
            if len(found[-1]) > 1 and sum(found[-1].values()) + needed[i] + _GAP * len(found[-1]) > width:
                found.append({0: needed[0]})
            found[-1][i] = needed[i]
        return found

    def _length(self, cell: str) -> int:
        return Text.from_markup(cell).cell_len


_GAP = 2  # columns of a terminal between two columns of a table


def results_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], config: Mapping[str, Any], note: str = ""
) -> TerminalTable:
    """Returns the results of a run on the test split as a table for a terminal."""
    return TerminalTable(f"Test split: mean ± 95% interval over {config['seeds']} seeds", head, rows, note)


def closing(folder: pathlib.Path, picture: str, trained: int) -> str:
    """Returns the last lines of an experiment: whether it trained anything, its report and picture.

    >>> print(closing(pathlib.Path("runs"), "gains.png", 0))
    nothing was trained: all results were there
    report   runs/report.md
    picture  runs/gains.png
    """
    lines = [f"report   {folder / 'report.md'}", f"picture  {folder / picture}"]
    return "\n".join([*([] if trained else ["nothing was trained: all results were there"]), *lines])


def page(template: pathlib.Path, **values: Any) -> str:
    """Returns the page of a template, whose ``{names}`` the values replace."""
    return template.read_text(encoding="utf-8").format(**values)


def settings_section(results: Mapping[str, Any]) -> str:
    """Returns the last section of a page: the settings and the versions of a run."""
    settings = flatten_dict(results["config"], sep=".").items()
    rows = [(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)) for name, value in settings]
    table = markdown_table(("setting", "value"), rows, numbers=False)
    return f"## Settings\n\n{table}\n\nVersions: {versions_line(results['versions'])}."


def versions_line(versions: Mapping[str, Any]) -> str:
    """Returns package versions as text, several of a package where they differ."""
    several = {name: [found] if isinstance(found, str) else found for name, found in versions.items()}
    return ", ".join(f"{name} {' and '.join(found)}" for name, found in several.items())


def duration(seconds: float) -> str:
    """Returns a duration in its natural unit.

    >>> duration(90), duration(600), duration(9000)
    ('90 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# Numbers as text. A `summary` is that of `statistics.summary`.


def number(value: float | None, spec: str = "z.2f") -> str:
    """Returns a number in a format, or a dash for None."""
    return NONE if value is None else f"{value:{spec}}"


def percent(share: float | None) -> str:
    return "not finite" if share is None else f"{100 * share:.2f}"


def difference(a: float | None, b: float | None, scale: float = 1) -> str:
    """Returns a difference with its sign, or a dash where one of the numbers is None."""
    return NONE if a is None or b is None else f"{scale * (a - b):+z.2f}"


def mean(summary: Mapping[str, Any] | None, scale: float = 100, spec: str = ".2f") -> str:
    """Returns the mean of a summary, in per cent by default."""
    if summary is None:
        return NONE
    return "not finite" if summary["mean"] is None else f"{scale * summary['mean']:{spec}}"


def mean_and_sd(summary: Mapping[str, Any]) -> str:
    if summary["mean"] is None:
        return "not finite"
    return f"{mean(summary)} " + ("(n = 1)" if summary["sd"] is None else f"± {100 * summary['sd']:.2f}")


def interval(summary: Mapping[str, Any]) -> str:
    """Returns the ends of the 95% interval in per cent."""
    mean, half = summary["mean"], summary["half"]
    if mean is None or half is None:
        return "not finite" if mean is None else "n = 1"
    return f"{100 * (mean - half):.2f} to {100 * (mean + half):.2f}"


def gain(summary: Mapping[str, Any] | None, seeds: int) -> str:
    """Returns a paired gain in points, and its seeds where the method has more."""
    if summary is None or summary["mean"] is None:
        return "no seed in common" if summary is None else "not finite"
    spread = "(n = 1)" if summary["half"] is None else f"± {100 * summary['half']:.2f}"
    count = len(summary["seeds"])
    fewer = f" ({count} of {seeds} seeds)" if count < seeds else ""
    return f"{100 * summary['mean']:+z.2f} {spread}{fewer}"


def power(found: Mapping[str, float] | None, unit: str, scale: float = 100, digits: int = 2) -> str:
    """Returns what the seeds can resolve, from `statistics.resolvable`, as a sentence; none where it is not known.

    >>> power({"seeds": 3, "sd": 0.01, "gain": 0.0326}, "points")[-79:]
    'the smallest true gain that they show with a probability of 80% is 3.26 points.'
    """
    if found is None:
        return ""
    spread, least = (f"{scale * found[name]:.{digits}f}" for name in ("sd", "gain"))
    return (
        f"Power: a difference from the student alone has a standard deviation of {spread} {unit} over the seeds "
        f"(median of the methods). With {found['seeds']:g} seeds and a two-sided paired t test at 5%, "
        f"the smallest true gain that they show with a probability of 80% is {least} {unit}."
    )


def epochs(numbers: Sequence[float]) -> str:
    first, last = min(numbers), max(numbers)
    return f"epoch {first:g}" if first == last else f"epochs {first:g} to {last:g}"
