"""The command: the tasks of the field, by name."""

import sys
from collections.abc import Mapping

from experiments.classification import attributes, compression, deit, dino, foundation, function_matching
from experiments.classification.study import main as study
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
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0].startswith("study"):
        return study.cli(arguments)
    return run.cli("classification", TASKS, arguments)
