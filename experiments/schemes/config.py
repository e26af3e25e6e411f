"""The settings of a run: the command line is made from it."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from jaxkd.training import _run_identity as identity


@dataclasses.dataclass(frozen=True)
class Config:
    """Every scheme on one problem, beside the student alone and offline distillation at equal training cost.

    The handwritten digits of scikit-learn, few of them labelled; or CIFAR-100, where --data-dir says where it is.
    Interrupted and started again, the run goes on where it was.
    """

    out: pathlib.Path = pathlib.Path("runs/schemes")
    """where results, checkpoints and logs go"""
    schemes: tuple[str, ...] = ()
    """which to run; all by default"""
    data_dir: pathlib.Path | None = None
    """where TFDS's cifar100 is prepared; the digits without it"""
    seeds: int = 5
    """repetitions: each has its own images, initial weights and order of batches"""
    first_seed: int = 0
    """the number of the first of them"""
    images: int = 0
    """labelled images that a student learns from: by default 200 digits, or 5,000 of CIFAR-100"""
    epochs: int = 0
    """of a student alone and of offline distillation: by default 200 for the digits, 12 for CIFAR-100"""
    teacher_epochs: int = 0
    """of the teacher, over all training images: by default 24 for the digits, 12 for CIFAR-100"""
    teacher_weights: pathlib.Path | None = None
    """safetensors of a trained teacher of CIFAR-100, for all seeds, instead of training one"""
    batch: int = 0
    """examples in a batch: by default 32 digits, or 64 images of CIFAR-100"""
    timing: bool = True
    """measure seconds per example, beside counting FLOPs"""

    def identity(self) -> dict[str, Any]:
        """What makes this run this one: everything but where it is and which of its rows are asked for."""
        plain: dict[str, Any] = identity.plain(self)
        return {
            name: value for name, value in plain.items() if name not in ("out", "schemes", "data_dir", "timing")
        } | {"data": "digits" if self.data_dir is None else "cifar100"}


def checked(config: Config) -> Config:
    """The same settings with what depends on the data filled in.

    Raises:
      ValueError: a setting that cannot be run.
    """
    digits = config.data_dir is None
    defaults: dict[str, int] = {
        "images": 200 if digits else 5_000,
        "epochs": 200 if digits else 12,
        "teacher_epochs": 24 if digits else 12,
        "batch": 32 if digits else 64,
    }
    filled = {name: getattr(config, name) or value for name, value in defaults.items()}
    config = dataclasses.replace(config, **filled)  # type: ignore[arg-type]
    for name in ("seeds", *defaults):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(config, name)}.")
    if config.seeds < 2:
        raise ValueError("--seeds: expected at least 2, got 1: an interval needs several.")
    if config.teacher_weights is not None and digits:
        raise ValueError(
            "--teacher-weights: is for CIFAR-100, give --data-dir too; the digits' teachers train in seconds."
        )
    return config
