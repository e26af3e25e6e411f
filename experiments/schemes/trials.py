"""What one row of the table is: a scheme made for a problem, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optax

import jaxkd
from experiments.schemes.config import Config
from experiments.schemes.problem import Problem
from jaxkd import data, distillers, losses, metrics, teachers
from jaxkd._core import axes
from jaxkd.data._transforms import Transform
from jaxkd.types import Batch, Context, Distiller, Metrics, Model, Objective, TrainState, Variables

Own = Mapping[str, Variables]
"""What a seed has before a scheme begins: the weights of its teachers, by name."""

Make = Callable[[Own], Distiller]
"""Makes a seed's distiller of what the seed has."""


class Part(NamedTuple):
    """A piece of training, to count its cost: a distiller, and for how many steps."""

    make: Make
    steps: int


class Trial(NamedTuple):
    """A training of all seeds.

    Attributes:
      make: the distiller of a seed, for images as they are stored.
      steps: of it.
      model: what is measured at the end, and exported; it reads normalized images.
      pick: its variables, out of the final state.
      parts: what the training is made of, where that is not ``make`` for all steps.
      loader: makes the input of a seed from its images.
      needs: the pretrained networks that it uses, of `trained.NETWORKS`.
      look: what an image goes through before it is measured; `Problem.normalize` by default.
      every: steps between evaluations, where these must be at certain steps.
      metrics: further ones of an evaluation.
      extra: what else is to be known of the first seed's student, numbers by name.
    """

    make: Make
    steps: int
    model: Model
    pick: Callable[[TrainState], Variables] = lambda state: state.student
    parts: Sequence[Part] = ()
    loader: Callable[[data.Dataset, int], Any] | None = None
    needs: tuple[str, ...] = ("teacher",)
    look: Transform | None = None
    every: int | None = None
    metrics: Callable[[Context], Metrics] | None = None
    extra: Callable[[Variables], Mapping[str, float]] | None = None


class Row(NamedTuple):
    """A row of the table.

    Attributes:
      title: what it is called.
      group: of schemes it belongs to.
      build: makes its trial.
      alone: the student alone at so many steps, where it is not the usual one.
      offline: offline distillation at so many steps, where it is not the usual one.
      note: what is to be known of the row: how it was set, and, where it does not help, why as far as was found.
      found: whether it needs the chain of assistants that is to be found first.
      problems: the problems that it is there for.
    """

    title: str
    group: str
    build: Callable[[Setting], Trial]
    alone: Callable[[Setting, int], Trial] | None = None
    offline: Callable[[Setting, int], Trial] | None = None
    note: str = ""
    found: bool = False
    problems: tuple[str, ...] = ("digits", "cifar100")


class Setting(NamedTuple):
    """What every row is built from."""

    problem: Problem
    config: Config
    chain: tuple[str, ...] = ()
    """The chain of assistants that was found, the student last."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in a pass over a student's images."""
        return self.config.images // self.config.batch

    @property
    def steps(self) -> int:
        """Of a student alone, and of every scheme whose student trains as long."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def student(self) -> Model:
        """The student's network."""
        return self.problem.network("student")

    def optimizer(self, steps: int | None = None) -> optax.GradientTransformation:
        """The problem's, for so many steps."""
        return self.problem.optimizer(self.steps if steps is None else steps)

    def teacher(self, own: Own, name: str = "teacher", size: str = "teacher", **options: Any) -> jaxkd.Teacher:
        """A pretrained network as a teacher."""
        return teachers.frozen(self.problem.network(size, **options), own[name])

    def placed(self, kd: Distiller, *more: Transform, train: Transform | None = None) -> Distiller:
        """A distiller for images as they are stored: augmented and normalized to train, normalized to evaluate.

        Args:
          kd: for normalized images.
          *more: transforms that follow either.
          train: instead of the usual augmentation and normalization.
        """
        usual = data.compose(self.problem.augment, self.problem.normalize)
        look = data.compose(self.problem.normalize, *more)
        return distillers.preprocess(kd, train_transform=data.compose(train or usual, *more), eval_transform=look)


CE = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
"""Cross-entropy on the labels."""


def soft(weight: float = 1.0, temperature: float = 4.0, teacher: str = "teacher/logits") -> Objective:
    """Soft targets."""
    return jaxkd.term(losses.soft_target_kl, "student/logits", teacher, weight=weight, temperature=temperature)


def both(weight: float = 1.0, temperature: float = 4.0) -> Objective:
    """Cross-entropy and soft targets: the objective of offline distillation, wherever a scheme has a teacher."""
    return jaxkd.combine(ce=CE, kd=soft(weight, temperature))


def alone(setting: Setting, steps: int) -> Trial:
    """The student alone."""
    return supervised(setting, steps, setting.student)


def supervised(setting: Setting, steps: int, model: Model, *more: Transform) -> Trial:
    """A network alone, which may read what further transforms make of an image."""

    def make(own: Own) -> Distiller:
        kd = jaxkd.distill(model, teachers.none(), jaxkd.combine(ce=CE), optimizer=setting.optimizer(steps))
        return setting.placed(kd, *more)

    return Trial(make, steps, model, needs=(), look=data.compose(setting.problem.normalize, *more))


def offline(setting: Setting, steps: int) -> Trial:
    """Offline distillation from the trained teacher."""
    return taught(setting, steps, setting.student, setting.teacher)


def taught(
    setting: Setting,
    steps: int,
    model: Model,
    teacher: Callable[[Own], jaxkd.Teacher],
    *more: Transform,
    objective: Objective | None = None,
    needs: tuple[str, ...] = ("teacher",),
) -> Trial:
    """A network that learns from labels and a teacher, each of which may read what transforms make of an image."""

    def make(own: Own) -> Distiller:
        kd = jaxkd.distill(model, teacher(own), objective or both(), optimizer=setting.optimizer(steps))
        return setting.placed(kd, *more)

    return Trial(make, steps, model, needs=needs, look=data.compose(setting.problem.normalize, *more))


def measured(kd: Distiller, trial: Trial, normalize: Transform) -> Distiller:
    """A distiller whose evaluation is of the model that is to be exported, by itself, on images as they are stored."""

    look = trial.look or normalize

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        given = look(batch)
        outputs, _ = trial.model.apply(trial.pick(state), given, key=None, train=False)
        context = Context({"logits": outputs["logits"]}, {}, given, state.step, axes.mapped_axis())
        return (trial.metrics or metrics.classification)(context)

    return kd._replace(evaluate=evaluate)
