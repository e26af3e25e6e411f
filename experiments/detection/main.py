"""The command: the tasks of the field, by name."""

from collections.abc import Mapping

from experiments.detection import cells
from experiments.kit.tasks import run
from experiments.kit.tasks.task import Task

TASKS: Mapping[str, Task] = {"bccd": cells.FEW_TASK, "bccd_all": cells.ALL_TASK}


def cli(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run.cli("detection", TASKS, arguments)
