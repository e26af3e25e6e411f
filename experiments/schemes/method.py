"""A method of the table: a training made for a problem, and its baselines."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

import jaxkd
from experiments.kit import command, inputs, methods, training
from experiments.kit.recipe import Transform
from experiments.schemes.config import Config
from experiments.schemes.problem import Problem
from jaxkd import data, teachers, wrappers
from jaxkd.types import Context, Distiller, Metrics, Model, Objective, Teacher, TrainState, Variables

Own = Mapping[str, Variables]  # the variables that a seed has before a method begins: those of its teachers, by name

Make = Callable[[Own], Distiller]  # makes a seed's distiller from what the seed has


class Part(NamedTuple):
    """A part of a training, to count its cost: a distiller, and its number of steps."""

    make: Make
    steps: int


class Training(NamedTuple):
    """A training of all seeds."""

    make: Make  # makes the distiller of a seed, for images as they are stored
    steps: int  # its steps
    model: Model  # the model that is measured at the end, and exported; it reads normalized images
    pick: Callable[[TrainState], Variables] = lambda state: state.student  # the model's variables in the final state
    parts: Sequence[Part] = ()  # the parts of the training, where the distiller of ``make`` is not that of all steps
    loader: Callable[[data.Dataset, int], Any] | None = None  # makes the input of a seed from its images
    needs: tuple[str, ...] = ("teacher",)  # the networks that it begins with, of `teachers.NETWORKS`
    look: Transform | None = None  # transform of an image before it is measured; `Problem.normalize` by default
    every: int | None = None  # steps between evaluations, where these must be at certain steps
    metrics: Callable[[Context], Metrics] | None = None  # metrics of an evaluation; by default those of a classifier
    extra: Callable[[Variables], Mapping[str, float]] | None = None  # further numbers about the first student, by name

    @property
    def all_parts(self) -> Sequence[Part]:
        """The parts of the training."""
        return self.parts or [Part(self.make, self.steps)]

    def measured(self, own: Own, normalize: Transform) -> Distiller:
        """Returns the distiller of a seed, whose evaluation measures the exported model."""
        look = self.look or normalize
        return training.measured(self.make(own), self.model, self.pick, look, self.metrics)

    def input(self, images: data.Dataset, config: Config, seed: int) -> Any:
        """Returns the input of a seed."""
        if self.loader is not None:
            return self.loader(images, seed)
        return data.Resident(images, config.batch, drop_remainder=True)


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
        """The student's network."""
        return self.problem.network("student")

    def optimizer(self, steps: int | None = None) -> optax.GradientTransformation:
        """Returns the problem's optimizer, for so many steps."""
        return self.problem.optimizer(self.steps if steps is None else steps)

    def teacher(self, own: Own, name: str = "teacher", size: str | None = None) -> Teacher:
        """Returns a trained network as a teacher, of the size that its name says or another."""
        return teachers.frozen(self.problem.network(size or name), own[name])

    def placed(self, kd: Distiller, *more: Transform, train: Transform | None = None) -> Distiller:
        """Returns a distiller for stored images: augmented and normalized (or ``train``), then transformed further."""
        look, train = data.compose(self.problem.normalize, *more), data.compose(train or self.problem.look, *more)
        return jaxkd.distillers.preprocess(kd, train_transform=train, eval_transform=look)

    def training(
        self,
        kd: Make,
        *more: Transform,
        steps: int | None = None,
        model: Model | None = None,
        train: Transform | None = None,
        **options: Any,
    ) -> Training:
        """Returns the training of a distiller, by default as long as a student alone, which measures the student."""
        return Training(
            lambda own: self.placed(kd(own), *more, train=train),
            self.steps if steps is None else steps,
            model or self.student,
            look=data.compose(self.problem.normalize, *more),
            **options,
        )


Build = Callable[[Setting], Training]
CE = methods.cross_entropy()
LABELS = jaxkd.combine(ce=CE)
BOTH = methods.METHODS["kd"].objective(methods.Setting(weights={"ce": 1.0, "kd": 1.0}))
"""Cross-entropy and soft targets: the objective of offline distillation, and of every method with a teacher."""


def taught(
    setting: Setting,
    steps: int,
    model: Model,
    teacher: Callable[[Own], Teacher] | None,
    *more: Transform,
    objective: Objective = BOTH,
    needs: tuple[str, ...] = ("teacher",),
) -> Training:
    """Returns the training of a network by a teacher; both may read transforms."""

    def kd(own: Own) -> Distiller:
        made = teachers.none() if teacher is None else teacher(own)
        return jaxkd.distill(model, made, objective, optimizer=setting.optimizer(steps))

    return setting.training(kd, *more, steps=steps, model=model, needs=needs)


def supervised(setting: Setting, steps: int, model: Model, *more: Transform, objective: Objective = LABELS) -> Training:
    """Returns the training of a network alone."""
    return taught(setting, steps, model, None, *more, objective=objective, needs=())


def alone(setting: Setting, steps: int) -> Training:
    """Returns the training of the student alone."""
    return supervised(setting, steps, setting.student)


def offline(setting: Setting, steps: int) -> Training:
    """Returns offline distillation from the trained teacher."""
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
    own: list[Own],
    setting: Setting,
    name: str,
    folder: pathlib.Path,
    sets: list[data.Dataset] | None = None,
) -> dict[str, Any]:
    """Trains all seeds on their own images or on other sets, or resumes an interrupted training.

    Returns ``accuracy`` on the test split, ``curve`` on the validation split and ``variables`` of the measured model,
    each a list of seeds. All seeds are one program, or trained one after the other.
    """
    problem, config = setting.problem, setting.config
    seeds = command.seeds(config)
    loaders = [of.input(one, config, seed) for one, seed in zip(sets or problem.students, seeds, strict=True)]
    every, indices = of.every or max(of.steps // 12, 1), list(range(len(seeds)))
    found: dict[str, list[Any]] = {"accuracy": [], "curve": [], "variables": []}
    for group in [indices] if problem.mapped else [[i] for i in indices]:
        numbers = [seeds[i] for i in group]
        kd, result = training.run_seeds(
            lambda one: of.measured(one, problem.normalize),
            [own[i] for i in group],
            inputs.Seeds([loaders[i] for i in group], numbers),
            {"validation": _held(problem.validation)},
            steps=of.steps,
            eval_every=every,
            chunk=100 if problem.mapped else 1,
            checkpoint_every=4 * every,
            directory=folder if problem.mapped else folder / str(numbers[0]),
            config={"training": name, **config.identity()},
        )
        tested = jaxkd.training.evaluate(kd, result.state, _held(problem.test))
        for i in range(len(group)):
            rows = [row for row in training.of_seed(result.history, i) if "validation/accuracy" in row]
            measured = [key for key in rows[0] if key.startswith("validation/accuracy")]
            curve = {key.removeprefix("validation/"): [round(row[key], 5) for row in rows] for key in measured}
            found["accuracy"].append(training.of_seed([tested], i)[0]["accuracy"])
            found["curve"].append({"step": [row["step"] for row in rows]} | curve)
            found["variables"].append(jax.device_get(of.pick(jaxkd.distillers.select_run(result.state, i))))
    return found


def _held(dataset: data.Dataset) -> data.Resident:
    return data.Resident(dataset, min(100, data.num_examples(dataset)), shuffle=False)
