"""The settings of a run, from which the command line is made."""

import dataclasses
import pathlib
from typing import Any

from experiments.kit import command


@dataclasses.dataclass(frozen=True)
class Config:
    """Every scheme beside the student alone and offline distillation at equal cost.

    The problem is scikit-learn's handwritten digits, few of them labeled, or CIFAR-100 if --data-dir names its folder.
    The same command resumes an interrupted run.
    """

    out: pathlib.Path = pathlib.Path("runs/schemes")  # folder of results, checkpoints and logs
    schemes: tuple[str, ...] = ()  # which to run; all by default
    data_dir: pathlib.Path | None = None  # folder of TFDS's cifar100; the digits without it
    seeds: int = 5  # repetitions: each has its own images, initial weights and order of batches
    first_seed: int = 0  # first of the seeds
    images: int = 0  # labeled images that a student learns from: by default 200 digits, or 5,000 of CIFAR-100
    epochs: int = 0  # of a student alone and of offline distillation: by default 200 for the digits, 12 for CIFAR-100
    teacher_epochs: int = 0  # of the teacher, over all training images: by default 24 for the digits, 12 for CIFAR-100
    teacher_weights: pathlib.Path | None = None
    """safetensors of a trained teacher of CIFAR-100, for all seeds, instead of training one"""
    batch: int = 0  # examples in a batch: by default 32 digits, or 64 images of CIFAR-100
    timing: bool = True  # measure seconds per example, beside counting FLOPs

    @property
    def data(self) -> str:
        return "digits" if self.data_dir is None else "cifar100"

    def identity(self) -> dict[str, Any]:
        """Returns the settings that decide the numbers."""
        return command.plain(self, "out", "schemes", "data_dir", "timing") | {"data": self.data}


DEFAULTS = {
    "digits": {"images": 200, "epochs": 200, "teacher_epochs": 24, "batch": 32},
    "cifar100": {"images": 5_000, "epochs": 12, "teacher_epochs": 12, "batch": 64},
}


def checked(config: Config) -> Config:
    """Returns the settings with the defaults of the problem."""
    defaults = DEFAULTS[config.data]
    filled: dict[str, Any] = {name: getattr(config, name) or value for name, value in defaults.items()}
    config = dataclasses.replace(config, **filled)
    command.at_least(config, *defaults)
    command.seeds(config, least=2)
    if config.teacher_weights is not None and config.data == "digits":
        raise ValueError(
            "--teacher-weights: is for CIFAR-100, give --data-dir too; the digits' teachers train in seconds."
        )
    return config
