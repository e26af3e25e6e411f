"""The command: the tasks of the field, by name."""

from collections.abc import Mapping

from experiments.kit.tasks import run
from experiments.kit.tasks.task import Task
from experiments.language import g2p, novels, sst, stories, stsb, trec

TASKS: Mapping[str, Task] = {
    "sst": sst.TASK,
    "trec": trec.TASK,
    "stsb": stsb.TASK,
    "novels": novels.TASK,
    "stories": stories.TASK,
    "g2p": g2p.TASK,
}


def cli(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run.cli("language", TASKS, arguments)
