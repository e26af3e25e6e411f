"""The methods and the settings of a run, as `experiments.digits.sweep` chose them."""

import dataclasses
import pathlib
from typing import Any, Literal

from experiments.kit import command, methods
from jaxkd.types import Objective

Method = Literal["student", "kd", "hint", "attention", "relations"]
METHODS: dict[Method, str] = {"student": "student", "kd": "kd", "hint": "fitnet", "attention": "at", "relations": "rkd"}
"""Names of `experiments.kit.methods` by the names of this experiment."""
TITLES = {"teacher": "teacher", "student": "student alone", "kd": "soft targets", "hint": "hint"}
TITLES |= {"attention": "attention transfer", "relations": "distance + angle"}
LAYERS = ("first", "second")  # taps of the networks; a hint and relations compare the second, attention both


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of the methods' terms beside a cross-entropy of weight 1."""

    kd: float = 4.0  # of the soft targets
    hint: float = 100.0  # of the hint regression
    attention: float = 10000.0  # of the attention transfer of each of the two layers
    relations: float = 3.0  # times 25 for distances and 50 for angles, the paper's weights


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a teacher on all labels, then small students with few labels.

    The same command resumes an interrupted run.
    """

    out: pathlib.Path = pathlib.Path("runs/digits")  # folder of results, checkpoints and logs
    restart: bool = False  # delete what an earlier run left in --out
    methods: tuple[Method, ...] = tuple(METHODS)  # methods to run; the student alone is always among them
    seeds: int = 10  # repetitions: each has its own labeled examples, teacher, student and order of batches
    first_seed: int = 0  # first of the seeds
    labels: int = 100  # labeled examples that a student sees, of 1097; the others are images without labels
    epochs: int = 24  # passes of a student over all training images
    teacher_epochs: int = 16  # passes of a teacher
    batch: int = 16  # labeled examples in a batch, and as many others; a teacher's batch is the two together
    learning_rate: float = 3e-3  # of Adam for students, falling to 0 along a cosine
    teacher_learning_rate: float = 3e-3  # of Adam for teachers
    student_widths: tuple[int, int] = (4, 8)  # channels of the student's two layers
    teacher_widths: tuple[int, int] = (16, 32)  # channels of the teacher's two layers
    temperature: float = 4.0  # of the soft targets
    weights: Weights = dataclasses.field(default_factory=Weights)  # of the methods
    eval_every: int = 2  # epochs between evaluations on the validation split
    checkpoint_every: int = 8  # epochs between checkpoints; an interrupted run resumes from the last one

    def identity(self) -> dict[str, Any]:
        """Returns the settings that decide the numbers."""
        return command.plain(self, "out", "restart")


def objective(name: Method, config: Config) -> Objective:
    """Returns the objective of a method, whose own terms see every image."""
    w = config.weights
    own = {"ce": 1.0, "kd": w.kd, "hint": w.hint, "at": w.attention}
    own |= {"distance": 25 * w.relations, "angle": 50 * w.relations}
    setting = methods.Setting(
        stages=LAYERS, embedding=LAYERS[1], labeled="batch/labeled", temperature=config.temperature, weights=own
    )
    return methods.METHODS[METHODS[name]].objective(setting)


def checked(config: Config) -> Config:
    """Returns the settings with the student alone first."""
    command.at_least(config, "epochs", "teacher_epochs", "batch", "eval_every", "checkpoint_every", "labels")
    command.seeds(config, least=2)
    if not config.batch <= config.labels <= 1097:
        raise ValueError(f"--labels: expected {config.batch} (a batch) to 1097 (all there are), got {config.labels}.")
    if config.checkpoint_every % config.eval_every:
        raise ValueError("--checkpoint-every: expected a multiple of --eval-every.")
    wanted = set(config.methods) | {"student"}
    return dataclasses.replace(config, methods=tuple(name for name in METHODS if name in wanted))
