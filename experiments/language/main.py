"""The command: the tasks of the field, by name."""

from collections.abc import Mapping

from experiments.kit.tasks import run
from experiments.kit.tasks.task import Task
from experiments.language import novels, stories, trec

TASKS: Mapping[str, Task] = {"novels": novels.TASK, "stories": stories.TASK, "trec": trec.TASK}


def cli(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run.cli("language", TASKS, arguments)
