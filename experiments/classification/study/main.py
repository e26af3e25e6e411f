"""The command of the study: ``python -m experiments.classification study``."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tyro
from rich.console import Console

from experiments.classification.study import cells, cifar100, features, relations, report, response
from experiments.classification.study.digits import Digits, Sizes
from experiments.classification.study.table import Rows
from experiments.kit import command

ROWS: Rows = {**response.ROWS, **features.ROWS, **relations.ROWS}


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare all methods with published values and with values that are chosen on the validation split.

    The same command resumes an interrupted run and adds methods to a finished one.
    """

    task: tyro.conf.Positional[str] = "study"  # name of the task: study (digits) or study_cifar100
    methods: tuple[str, ...] = ()  # methods to run, all by default; the student alone is always among them
    seeds: int = 0  # seeds of the students that are measured, 5 (digits) or 3 by default; others choose the values
    steps: int = Sizes.steps  # updates of a student of the digits
    epochs: int = cifar100.PROTOCOL.epochs  # epochs of a student and of the teacher of CIFAR-100
    data_dir: pathlib.Path | None = None  # folder of prepared TFDS sets, for CIFAR-100
    out: pathlib.Path = pathlib.Path("runs")  # folder of results; ``classification`` and the task follow
    report: bool = False  # write the report of what is finished, and run nothing


class Task(NamedTuple):
    """A task of the study."""

    title: str  # heading of its page
    rows: Rows  # its methods
    seeds: int  # seeds of the students that are measured, by default
    open: Callable[[Config, pathlib.Path], cells.Work]  # opens it with its folder
    settings: Callable[[Config], dict[str, Any]]  # settings that decide the numbers


def _protocol(config: Config) -> Any:
    return dataclasses.replace(cifar100.PROTOCOL, epochs=config.epochs, teacher_epochs=config.epochs)


def _open_cifar100(config: Config, folder: pathlib.Path) -> cells.Work:
    if config.data_dir is None:
        raise ValueError("--data-dir: expected the folder of prepared TFDS sets, with cifar100.")
    return cifar100.Cifar100(folder, config.data_dir, _protocol(config))


TITLE = "All losses: published values and values chosen on validation images"
TASKS = {
    "study": Task(
        TITLE,
        ROWS,
        5,
        lambda config, folder: Digits(folder / "prepared", Sizes(steps=config.steps)),
        lambda config: dataclasses.asdict(Sizes(steps=config.steps)),
    ),
    "study_cifar100": Task(
        f"{TITLE}: CIFAR-100", cifar100.rows(), 3, _open_cifar100, lambda config: _protocol(config).settings()
    ),
}


def cli(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return command.run("classification", Config, main, arguments)


def main(config: Config, console: Console) -> None:
    """Runs or resumes the study, and writes its report."""
    command.check_names("TASK", [config.task], TASKS)
    task = TASKS[config.task]
    command.check_names("--methods", config.methods, task.rows)
    seeds = config.seeds or task.seeds
    if seeds < 2:
        raise ValueError(f"--seeds: expected at least 2: an interval needs several, got {seeds}.")
    folder = config.out / "classification" / config.task
    settings = {**task.settings(config), "seeds": seeds}
    names = [name for name in task.rows if name == "student" or name in (config.methods or task.rows)]
    finish = functools.partial(write, folder, settings, config.task)
    with command.own_folder(folder, settings):
        if not config.report:
            work = functools.partial(task.open, config, folder)
            cells.Cells(task.rows, folder, work, console).run(names, range(seeds), finish)
        console.print(report.table(finish(), task.title))
    console.print(f"{folder}: results.json, report.md, gain-and-cost.png", highlight=False)


def write(folder: pathlib.Path, settings: Mapping[str, Any], name: str = "study") -> dict[str, Any]:
    """Writes the report of finished cells; returns its numbers."""
    return report.write(TASKS[name].rows, folder, settings, TASKS[name].title)
