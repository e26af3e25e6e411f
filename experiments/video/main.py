"""The command: the tasks of the field, by name."""

from collections.abc import Mapping

from experiments.kit.tasks import run
from experiments.kit.tasks.task import Task
from experiments.video import online, pose

TASKS: Mapping[str, Task] = {
    "jhmdb_pose": pose.TASK,
    "jhmdb_video": online.TASK,
}


def cli(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run.cli("video", TASKS, arguments)
