"""The command: the tasks of the field, by name."""

from collections.abc import Mapping

from experiments.classification import attributes, compression, dino
from experiments.kit.tasks import run
from experiments.kit.tasks.task import Task

TASKS: Mapping[str, Task] = {
    "attributes": attributes.TASK,
    "compression": compression.TASK,
    "compression_cifar100": compression.CIFAR100,
    "dino": dino.TASK,
}


def cli(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run.cli("classification", TASKS, arguments)
