"""The command of the study: ``python -m experiments.classification study``."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import tyro
from rich.console import Console

from experiments.classification.study import cells, features, relations, report, response
from experiments.classification.study.digits import Digits, Sizes
from experiments.classification.study.table import Rows
from experiments.kit import command

TITLE = "All losses: published values and values chosen on validation images"
ROWS: Rows = {**response.ROWS, **features.ROWS, **relations.ROWS}


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare all methods with published values and with values that are chosen on the validation split.

    The same command resumes an interrupted run and adds methods to a finished one.
    """

    task: tyro.conf.Positional[str] = "study"  # name of the task
    methods: tuple[str, ...] = ()  # methods to run, all by default; the student alone is always among them
    seeds: int = 5  # seeds of the students that are measured; two others choose the values
    steps: int = Sizes.steps  # updates of a student
    out: pathlib.Path = pathlib.Path("runs")  # folder of results; ``classification`` and the task follow
    report: bool = False  # write the report of what is finished, and run nothing


def cli(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return command.run("classification", Config, main, arguments)


def main(config: Config, console: Console) -> None:
    """Runs or resumes the study, and writes its report."""
    command.check_names("TASK", [config.task], ["study"])
    command.check_names("--methods", config.methods, ROWS)
    command.at_least(config, "seeds", least=2, why=": an interval needs several")
    folder = config.out / "classification" / config.task
    names = [name for name in ROWS if name == "student" or name in (config.methods or ROWS)]
    with command.own_folder(folder, settings(config)):
        work = cells.Cells(ROWS, folder, lambda: Digits(folder / "prepared", Sizes(steps=config.steps)), console)
        if not config.report:
            work.run(names, range(config.seeds), lambda: write(folder, settings(config)))
        console.print(report.table(write(folder, settings(config)), TITLE))
    console.print(f"{folder}: results.json, report.md, gain-and-cost.png", highlight=False)


def write(folder: pathlib.Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the report of finished cells; returns its numbers."""
    return report.write(ROWS, folder, found, TITLE)


def settings(config: Config) -> Mapping[str, Any]:
    """Returns the settings that decide the numbers."""
    return {**dataclasses.asdict(Sizes(steps=config.steps)), "seeds": config.seeds}
