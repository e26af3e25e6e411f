"""The command: the tasks of the field, by name."""

from collections.abc import Mapping

from experiments.classification import attributes, compression, deit, dino, foundation, function_matching
from experiments.kit.tasks import run
from experiments.kit.tasks.task import Task

TASKS: Mapping[str, Task] = {
    **function_matching.TASKS,
    **deit.TASKS,
    **foundation.TASKS,
    **dino.TASKS,
    **attributes.TASKS,
    **compression.TASKS,
}


def cli(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run.cli("classification", TASKS, arguments)
