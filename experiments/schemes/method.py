"""A method of the table: a training made for a problem, and its baselines."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

import jaxkd
from experiments.kit import command, methods
from experiments.kit.recipe import Transform
from experiments.kit.rows import seeds
from experiments.kit.rows.seeds import Make, Own, Part, Training
from experiments.schemes.config import Config
from experiments.schemes.problem import Problem
from jaxkd import data, teachers, wrappers
from jaxkd.types import Distiller, Model, Objective, Teacher


class Method(NamedTuple):
    """A row of the table."""

    title: str  # name in the table
    group: str  # family of schemes
    build: Callable[[Setting], Training]  # makes its training
    alone: Callable[[Setting, int], Training] | None = None  # for so many steps, where it is not the usual one
    offline: Callable[[Setting, int], Training] | None = None  # offline distillation, likewise
    searched: bool = False  # whether it needs the chain of assistants that is searched for first
    problems: tuple[str, ...] = ("digits", "cifar100")  # the problems that it exists for


class Setting(NamedTuple):
    """Problem and settings that every method is built from."""

    problem: Problem
    config: Config
    chain: tuple[str, ...] = ()  # the chain of assistants that was found, the student last

    @property
    def steps(self) -> int:
        """Steps of a student alone, and of every method whose student trains as long."""
        return self.config.epochs * (self.config.images // self.config.batch)

    @property
    def student(self) -> Model:
        return self.problem.network("student")

    def optimizer(self, steps: int | None = None) -> optax.GradientTransformation:
        return self.problem.optimizer(self.steps if steps is None else steps)

    def teacher(self, own: Own, name: str = "teacher", size: str | None = None) -> Teacher:
        """Returns a trained network as a teacher, of the size that its name says or another."""
        return teachers.frozen(self.problem.network(size or name), own[name])

    def batches(self, images: data.Dataset, seed: int = 0) -> data.Resident:
        return data.Resident(images, self.config.batch, drop_remainder=True)

    def placed(self, kd: Distiller, *more: Transform, train: Transform | None = None) -> Distiller:
        """Returns a distiller for stored images: augmented and normalized (or ``train``), then transformed further."""
        look, train = data.compose(self.problem.normalize, *more), data.compose(train or self.problem.look, *more)
        return jaxkd.distillers.preprocess(kd, train_transform=train, eval_transform=look)

    def training(self, kd: Make, *more: Transform, train: Transform | None = None, **options: Any) -> Training:
        """Returns the training of a distiller of transformed images, by default as long as that of a student alone."""
        look = data.compose(self.problem.normalize, *more)
        return self.unplaced(lambda own: self.placed(kd(own), *more, train=train), look=look, **options)

    def unplaced(self, make: Make, **options: Any) -> Training:
        """Returns the training of a distiller of the batches as they are."""
        steps = options.get("steps", self.steps)
        defaults = {"model": self.student, "loader": self.batches, "look": self.problem.normalize}
        return Training(**{"make": make, "steps": steps, "parts": [Part(make, steps)], **defaults, **options})


Build = Callable[[Setting], Training]
CE = methods.cross_entropy()
LABELS = jaxkd.combine(ce=CE)
BOTH = methods.METHODS["kd"].objective(methods.Setting(weights={"ce": 1.0, "kd": 1.0}))
"""Cross-entropy and soft targets: the objective of offline distillation, and of every method with a teacher."""


def taught(
    setting: Setting,
    steps: int,
    model: Model,
    teacher: Callable[[Own], Teacher],
    *more: Transform,
    objective: Objective = BOTH,
    needs: tuple[str, ...] = ("teacher",),
) -> Training:
    """Returns the training of a network by a teacher; both may read transforms."""
    optimizer = setting.optimizer(steps)
    return setting.training(
        lambda own: jaxkd.distill(model, teacher(own), objective, optimizer=optimizer),
        *more,
        steps=steps,
        model=model,
        needs=needs,
    )


def supervised(setting: Setting, steps: int, model: Model, *more: Transform, objective: Objective = LABELS) -> Training:
    return taught(setting, steps, model, lambda own: teachers.none(), *more, objective=objective, needs=())


def alone(setting: Setting, steps: int) -> Training:
    return supervised(setting, steps, setting.student)


def offline(setting: Setting, steps: int) -> Training:
    return taught(setting, steps, setting.student, setting.teacher)


def deferred(build: Callable[..., Training]) -> Callable[..., Callable[..., Training]]:
    """Returns a build that takes its own arguments first, and the setting (and steps) in a second call."""
    return lambda *arguments, **options: lambda *setting: build(*setting, *arguments, **options)


def untaught(make: Callable[[Setting], Distiller], member: str | None = None) -> Build:
    """Returns a training that begins with no trained network, of which a member may be the student."""
    pick: dict[str, Any] = {} if member is None else {"pick": lambda state: wrappers.get_member(state.student, member)}
    return lambda setting: setting.training(lambda own: make(setting), needs=(), **pick)


def run(
    of: Training,
    own: Sequence[Own],
    setting: Setting,
    name: str,
    folder: pathlib.Path,
    images: list[data.Dataset] | None = None,
) -> dict[str, Any]:
    """Trains all seeds on their own images or on others, or resumes an interrupted training."""
    problem, config = setting.problem, setting.config
    return seeds.run(
        of,
        own,
        dict(zip(command.seeds(config), images or problem.students, strict=True)),
        {"validation": _held(problem.validation), "test": _held(problem.test)},
        folder=folder,
        mapped=problem.mapped,
        config={"training": name, **config.identity()},
    )


def _held(dataset: data.Dataset) -> data.Resident:
    return data.Resident(dataset, min(100, data.num_examples(dataset)), shuffle=False)
