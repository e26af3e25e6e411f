"""The command line, its presets, and `Protocol`: all that decides a number."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal

Preset = Literal["paper", "reduced"]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What two runs must have in common for their numbers to be comparable.

    Attributes:
      epochs: of a student, in passes over its images. Decays and warm-ups are shares of it.
      teacher_epochs: of a teacher, which always sees all images but those held out.
      images: how many a student sees, the same number of each class; None for all.
      holdout: images taken from the training set, to choose the best epoch on; 0 chooses it on the test set, as the
        literature does, and says so.
      batch_size: examples in a step.
      eval_every: epochs between evaluations.
      cached: views of the augmentation are the same for every seed, and the outputs of the teacher on them are
        computed once for all methods that read no feature maps.
      bf16: compute in bfloat16; parameters, statistics and losses stay float32.
    """

    epochs: int
    teacher_epochs: int
    images: int | None = None
    holdout: int = 0
    batch_size: int = 64
    eval_every: int = 1
    cached: bool = False
    bf16: bool = False

    @property
    def name(self) -> str:
        """A folder's name, for students."""
        parts = [f"{self.epochs}-epochs"]
        parts += [f"{self.images}-images"] if self.images else []
        parts += [self._teacher_part] if self.teacher_epochs != self.epochs else []
        parts += self._marks
        parts += ["cached"] if self.cached else []  # the views are others, and
        parts += [f"every-{self.eval_every}"] if self.eval_every != 1 else []  # ... the best epoch is one of fewer
        return "-".join(parts)

    @property
    def teacher_name(self) -> str:
        """A folder's name, for teachers."""
        return "-".join([f"{self.teacher_epochs}-epochs", *self._marks])

    @property
    def full(self) -> bool:
        """Whether this is the literature's protocol, so that its accuracies can be compared as they are."""
        return self == dataclasses.replace(PRESETS["paper"], eval_every=self.eval_every, bf16=self.bf16)

    @property
    def _teacher_part(self) -> str:
        return f"teacher-{self.teacher_epochs}"

    @property
    def _marks(self) -> list[str]:
        marks = [f"holdout-{self.holdout}"] if self.holdout else []
        marks += [f"batch-{self.batch_size}"] if self.batch_size != 64 else []
        return marks + (["bf16"] if self.bf16 else [])


PRESETS: dict[str, Protocol] = {
    "paper": Protocol(epochs=240, teacher_epochs=240),
    "reduced": Protocol(epochs=12, teacher_epochs=12, cached=True),
}
SEEDS: dict[str, int] = {"paper": 5, "reduced": 3}


@dataclasses.dataclass(frozen=True)
class Config:
    """Fill cells of the CIFAR-100 distillation benchmark, and report them beside the published ones.

    A cell is a student: a pair of networks, a method and a seed. Teachers are trained once; cells that are finished are
    not run again; what was interrupted goes on. The same command in several processes shares the work.
    """

    data_dir: pathlib.Path | None = None
    """the TFDS data_dir in which cifar100 is prepared as array_record"""
    pair: tuple[str, ...] = ("resnet20:resnet8",)
    """TEACHER:STUDENT, several, or all (of the published tables)"""
    method: tuple[str, ...] = ("kd",)
    """rows of the tables, or all; the student alone is always among them"""
    preset: Preset = "paper"
    """paper: the literature's 240 epochs. reduced: 12 epochs, for two CPU cores"""
    seeds: int | None = None
    """students of each cell; by default 5 (paper) or 3 (reduced)"""
    first_seed: int = 0
    """the number of the first of them"""
    epochs: int | None = None
    """in place of the preset's; decays stay at 62.5, 75 and 87.5 % of them"""
    teacher_epochs: int | None = None
    """in place of the preset's; by default those of --epochs where that is given"""
    images: int | None = None
    """a student sees only so many of the 50,000, as many of each class; its teacher has seen all"""
    holdout: int | None = None
    """choose the best epoch on so many held-out training images, and not on the test set"""
    eval_every: int | None = None
    """epochs between evaluations"""
    bf16: bool | None = None
    """compute in bfloat16"""
    cached: bool | None = None
    """compute the teacher's outputs once, where a method reads no feature maps"""
    teacher_weights: tuple[str, ...] = ()
    """NAME=FILE: a trained teacher, from safetensors or a PyTorch state dict, instead of training one"""
    workers: int = 1
    """cells at the same time, each in a process with a device (on a CPU: a share of the cores) of its own"""
    vmapped: bool = False
    """train the seeds of a pair and a method as one program, each as in a run of its own. For accelerators where it was
    measured to pay, and it was not measured on any yet. A convolution mapped over seeds becomes a grouped one: on a CPU
    2 and 4 seeds of resnet8 went at 0.32 and 0.27 of the speed of seeds in turn (benchmarks/results/seeds.log)"""
    out: pathlib.Path = pathlib.Path("runs/cifar100")
    """where weights, logs and reports go"""
    dry_run: bool = False
    """show what would be run, its cost and the disk it takes, and leave"""


def protocol(config: Config) -> Protocol:
    """The preset with what the command line says otherwise.

    Raises:
      ValueError: a setting that cannot be run.
    """
    changed: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("epochs", "teacher_epochs", "images", "holdout", "eval_every", "bf16", "cached")
        if getattr(config, name) is not None
    }
    if "epochs" in changed:
        changed.setdefault("teacher_epochs", changed["epochs"])
    for name in ("epochs", "teacher_epochs", "images", "eval_every"):
        if changed.get(name, 1) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {changed[name]}.")
    found = dataclasses.replace(PRESETS[config.preset], **changed)
    for name, value in (("images", found.images or 100), ("holdout", found.holdout)):
        if value < 0 or value % 100:
            raise ValueError(f"--{name}: expected a multiple of 100, as many of each class, got {value}.")
    if (found.images or 50_000) + found.holdout > 50_000 + (0 if found.images else found.holdout):
        raise ValueError(f"--images {found.images} and --holdout {found.holdout} are more than the 50,000 there are.")
    if found.holdout >= 50_000:
        raise ValueError(f"--holdout: expected less than the 50,000 training images there are, got {found.holdout}.")
    return found


def seeds(config: Config) -> list[int]:
    """The numbers of the students of each cell.

    Raises:
      ValueError: there are none.
    """
    count = SEEDS[config.preset] if config.seeds is None else config.seeds
    if count < 1:
        raise ValueError(f"--seeds: expected at least 1, got {count}.")
    return list(range(config.first_seed, config.first_seed + count))
