"""Tables for a terminal fit its width, whatever they hold."""

import io
import json
import pathlib

import pytest
from rich.console import Console

from experiments.digits import report as digits
from experiments.kit import report

ROOT = pathlib.Path(__file__).parents[3]
HEAD = ("method", "accuracy (%)", "gain over the student alone", "agreement, teacher's states (%)", "cost")
ROWS = [("student alone", "84.55 ± 2.22", "", "84.30 ± 2.38", "1.00×"), ("kd", "95.47 ± 0.56", "+10.93", "96.35", "2×")]


def lines(shown, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(shown)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_a_table_fits_and_loses_nothing(width):
    printed = lines(report.TerminalTable("Title", HEAD, ROWS, "A note."), width)
    assert max(map(len, printed)) <= width
    assert printed[0] == "Title" and printed[-1] == "A note."
    for cell in (cell for row in ROWS for cell in row[1:] if cell):
        assert sum(cell in line for line in printed) >= 1, cell


def test_every_part_begins_with_the_first_column():
    table = report.TerminalTable("", HEAD, ROWS)
    parts = table.parts(40)
    assert len(parts) > 1
    assert [i for part in parts for i in part if i] == [1, 2, 3, 4]
    assert all(0 in part for part in parts)
    assert len(table.parts(200)) == 1


def test_sections_and_markup():
    printed = lines(report.TerminalTable("", ("a", "b"), [("[bold]pair[/bold]", ""), None, ("kd", "1")]), 80)
    assert any(line == "pair" for line in printed)
    assert not any("bold" in line for line in printed)


def test_the_table_of_the_demo_is_one_part_of_80_columns():
    results = json.loads((ROOT / "experiments" / "digits" / "results" / "results.json").read_text())
    table = digits.table(results)
    assert len(table.parts(80)) == 1
    printed = lines(table, 80)
    assert max(map(len, printed)) <= 80
    assert printed[-1] == "parameters: teacher 9,930, student 1,626"


def test_the_last_lines_name_report_and_picture():
    folder = pathlib.Path("runs") / "x"
    assert report.closing(folder, "gains.png", 3).splitlines() == [
        "report   runs/x/report.md",
        "picture  runs/x/gains.png",
    ]
    assert report.closing(folder, "gains.png", 0).startswith("nothing was trained")
