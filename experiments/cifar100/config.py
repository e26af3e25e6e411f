"""The command line of the benchmark, its presets and its checks."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

from experiments.cifar100 import published
from experiments.kit import cell, command, methods
from experiments.kit.recipe import Protocol
from jaxkd import models

Preset = Literal["paper", "reduced"]
PRESETS: dict[str, Protocol] = {
    "paper": published.PROTOCOL,
    "reduced": Protocol(epochs=12, teacher_epochs=12, cached=True),
}
SEEDS: dict[str, int] = {"paper": 5, "reduced": 3}


@dataclasses.dataclass(frozen=True)
class Config:
    """Fill cells of the CIFAR-100 benchmark, and report them beside published ones.

    A cell is a student: a pair of networks, a method and a seed. Teachers are trained once, finished cells are not run
    again, and interrupted ones are resumed. The same command in several processes shares the work.
    """

    data_dir: pathlib.Path | None = None  # TFDS data_dir in which cifar100 is prepared as array_record
    pair: tuple[str, ...] = ("resnet20:resnet8",)  # TEACHER:STUDENT, several, or all (of the published tables)
    method: tuple[str, ...] = ("kd",)  # methods of the tables, or all; the student alone is always among them
    preset: Preset = "paper"  # paper: the literature's 240 epochs. reduced: 12 epochs, for two CPU cores
    seeds: int | None = None  # students of each pair and method; by default 5 (paper) or 3 (reduced)
    first_seed: int = 0  # first of the seeds
    epochs: int | None = None  # instead of the preset's; decays stay at 62.5, 75 and 87.5 % of them
    teacher_epochs: int | None = None  # instead of the preset's; by default those of --epochs where that is given
    images: int | None = None  # of the 50,000, that a student sees, equally many of each class; its teacher sees all
    holdout: int | None = None  # training images to hold out, on which the best epoch is chosen instead of the test set
    eval_every: int | None = None  # epochs between evaluations
    bf16: bool | None = None  # compute in bfloat16
    cached: bool | None = None  # compute the teacher's outputs once, for methods that read no feature maps
    teacher_weights: tuple[str, ...] = ()
    """NAME=FILE: a trained teacher, from safetensors or a PyTorch state dict, instead of training one"""
    workers: int = 1
    """cells at the same time, each in a process with a device (on a CPU: a share of the cores) of its own"""
    vmapped: bool = False
    """train the seeds of a pair and a method as one program, with the results of separate runs: for accelerators where
    it was measured to pay (on a CPU 4 seeds of resnet8 ran at 0.27 of the speed of seeds in turn)"""
    out: pathlib.Path = pathlib.Path("runs/cifar100")  # folder of weights, logs and reports
    dry_run: bool = False  # show what would be run, its cost and its disk, and exit


def protocol(config: Config) -> Protocol:
    """Returns the preset with the command line's changes."""
    command.at_least(config, "epochs", "teacher_epochs", "images", "eval_every")
    names = [field.name for field in dataclasses.fields(Protocol)]
    changed: dict[str, Any] = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    if "epochs" in changed:
        changed.setdefault("teacher_epochs", changed["epochs"])
    found = dataclasses.replace(PRESETS[config.preset], **changed)
    for name, value in (("images", found.images or 100), ("holdout", found.holdout)):
        if value < 0 or value % 100:
            raise ValueError(f"--{name}: expected a multiple of 100, equally many of each class, got {value}.")
    if found.holdout >= 50_000:
        raise ValueError(f"--holdout: expected less than the 50,000 training images there are, got {found.holdout}.")
    if found.images and found.images + found.holdout > 50_000:
        raise ValueError(f"--images {found.images} and --holdout {found.holdout} are more than the 50,000 there are.")
    return found


def seeds(config: Config) -> list[int]:
    count = SEEDS[config.preset] if config.seeds is None else config.seeds
    return command.seeds(dataclasses.replace(config, seeds=count))


def chosen_pairs(config: Config) -> list[str]:
    if "all" in config.pair:
        return list(published.PAIRS)
    return list(dict.fromkeys(":".join(cell.split(pair)) for pair in config.pair))


def chosen_methods(config: Config) -> list[str]:
    """Returns the methods of the command line, the student alone first."""
    command.check_names("--method", config.method, (*methods.METHODS, "all"))
    wanted = {"student", *config.method}
    return [name for name in methods.METHODS if name in wanted or "all" in wanted]


def given_teachers(entries: Sequence[str], pairs: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    teachers = list(dict.fromkeys(cell.split(pair)[0] for pair in pairs))
    for entry in entries:
        name, equals, file = entry.partition("=")
        if not equals or not pathlib.Path(file).is_file():
            raise ValueError(f"--teacher-weights: expected NAME=FILE with a file that exists, got {entry!r}.")
        name = models.canonical(name)
        if name not in teachers or name in found:
            expected = f"expected one file for some of the teachers {', '.join(teachers)}"
            raise ValueError(f"--teacher-weights: {expected}, got {entry!r}.")
        found[name] = file
    return found
