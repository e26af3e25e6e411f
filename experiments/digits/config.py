"""The settings of a run. Each was chosen on the validation split, by ``python -m experiments.digits.sweep``."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal

from jaxkd.training import _run_identity as identity

Method = Literal["student", "kd", "hint", "attention", "relations"]
METHODS: tuple[Method, ...] = ("student", "kd", "hint", "attention", "relations")
TITLES = {
    "teacher": "teacher",
    "student": "student alone",
    "kd": "soft targets",
    "hint": "hint",
    "attention": "attention transfer",
    "relations": "distance + angle",
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """What each method's terms weigh; the cross-entropy of the labelled examples always weighs 1."""

    kd: float = 4.0
    """of the soft targets"""
    hint: float = 100.0
    """of the hint regression"""
    attention: float = 10000.0
    """of the attention transfer of each of the two layers"""
    relations: float = 3.0
    """times 25 for distances and 50 for angles, the paper's weights"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a teacher on all labels, then a small student with few, alone and with each method of distillation.

    Interrupted and started again, the run goes on where it was.
    """

    out: pathlib.Path = pathlib.Path("runs/digits")
    """where results, checkpoints and logs go"""
    restart: bool = False
    """throw away what an earlier run left in --out"""
    methods: tuple[Method, ...] = METHODS
    """which to run; the student alone is always among them"""
    seeds: int = 10
    """repetitions: each has its own labelled examples, teacher, student and order of batches"""
    first_seed: int = 0
    """the number of the first of them"""
    labels: int = 100
    """labelled examples that a student sees, of 1097; the others are images without labels"""
    epochs: int = 24
    """of a student, in passes over all training images"""
    teacher_epochs: int = 16
    """of a teacher"""
    batch: int = 16
    """labelled examples in a batch, and as many others; a teacher's batch is the two together"""
    learning_rate: float = 3e-3
    """of Adam for students, falling to 0 along a cosine"""
    teacher_learning_rate: float = 3e-3
    """of Adam for teachers"""
    student_widths: tuple[int, int] = (4, 8)
    """channels of the student's two layers"""
    teacher_widths: tuple[int, int] = (16, 32)
    """channels of the teacher's two layers"""
    temperature: float = 4.0
    """of the soft targets"""
    weights: Weights = dataclasses.field(default_factory=Weights)
    """of the methods"""
    eval_every: int = 2
    """epochs between evaluations on the validation split"""
    checkpoint_every: int = 8
    """epochs between checkpoints; an interrupted run goes on from the last one"""

    def identity(self) -> dict[str, Any]:
        """What makes this run this one: everything but where it is and how it is started."""
        plain: dict[str, Any] = identity.plain(self)
        return {name: value for name, value in plain.items() if name not in ("out", "restart")}


def checked(config: Config) -> Config:
    """The same settings with the student alone first.

    Raises:
      ValueError: a setting that cannot be run.
    """
    for name in ("seeds", "epochs", "teacher_epochs", "batch", "eval_every", "checkpoint_every", "labels"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(config, name)}.")
    if config.seeds < 2:
        raise ValueError("--seeds: expected at least 2, got 1: an interval needs several.")
    if not config.batch <= config.labels <= 1097:
        raise ValueError(f"--labels: expected {config.batch} (a batch) to 1097 (all there are), got {config.labels}.")
    if config.checkpoint_every % config.eval_every:
        raise ValueError("--checkpoint-every: expected a multiple of --eval-every.")
    wanted = set(config.methods) | {"student"}
    return dataclasses.replace(config, methods=tuple(name for name in METHODS if name in wanted))
