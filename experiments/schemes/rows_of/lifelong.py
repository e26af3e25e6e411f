"""Classes that come in tasks, one after the other, and what is forgotten of the earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxkd
from experiments.schemes.trials import Own, Row, Setting, Trial
from jaxkd import data, schemes
from jaxkd.metrics import _forgetting
from jaxkd.objectives import continual
from jaxkd.types import Distiller, Objective

TASKS = 5
KEPT = 4
"""Examples of each old class that are retained, where any are."""


def groups(setting: Setting) -> list[list[int]]:
    """The classes of each task."""
    return [list(group) for group in data.class_groups(setting.problem.classes, TASKS)]


def lengths(steps: int) -> list[int]:
    """Equal tasks, whose number of steps an evaluation divides."""
    return [max(steps // TASKS, 1)] * TASKS


def trial(setting: Setting, steps: int, kd: Callable[[Own, list[int]], Distiller], kept: int = 0) -> Trial:
    """A student of one task after the other."""
    tasks, each = groups(setting), lengths(steps)
    batch = setting.config.batch

    def loader(images: data.Dataset, seed: int) -> Any:
        # As many of each class, so that all seeds have tasks of one size.
        each_class = max(setting.config.images // setting.problem.classes - 1, 1)
        parts = [data.exemplars(part, per_class=each_class) for part in data.class_incremental(images, tasks)]
        size = min(batch, *(data.num_examples(part) for part in parts))
        loaders = [data.Resident(part, size, drop_remainder=True) for part in parts]
        if not kept:
            return data.Tasks(loaders, each)
        retained = [data.exemplars(part, per_class=kept) for part in parts]
        return data.Tasks(loaders, each, retained=retained, retained_size=size // 4)

    def make(own: Own) -> Distiller:
        return setting.placed(kd(own, each))

    return Trial(
        make,
        sum(each),
        setting.student,
        loader=loader,
        needs=(),
        every=each[0],
        metrics=_forgetting.per_task(tasks, steps=each),
    )


def sequential(objective: Callable[[list[list[int]], list[int]], Objective]) -> Callable[[Setting, int], Trial]:
    """The student with an objective, task by task."""

    def build(setting: Setting, steps: int) -> Trial:
        def kd(own: Own, each: list[int]) -> Distiller:
            return schemes.lifelong(
                setting.student,
                objective(groups(setting), each),
                steps=each,
                optimizer=setting.optimizer(each[0]),
            )

        return trial(setting, steps, kd)

    return build


FINE_TUNED = sequential(
    lambda tasks, each: jaxkd.combine(ce=continual.task_cross_entropy(tasks, each, softmax=continual.joint_softmax))
)
"""No teacher: what comes later overwrites what was learned."""


def lwf(heads: Any, weight: float, kept: int = 0) -> Callable[[Setting], Trial]:
    """Learning without forgetting."""

    def build(setting: Setting) -> Trial:
        def kd(own: Own, each: list[int]) -> Distiller:
            return schemes.learning_without_forgetting(
                setting.student,
                tasks=groups(setting),
                steps=each,
                optimizer=setting.optimizer(each[0]),
                old_weight=weight,
                softmax=heads,
            )

        return trial(setting, setting.steps, kd, kept)

    return build


def retrospection(setting: Setting) -> Trial:
    """An expert for each task, then both teachers, with retained examples."""

    def kd(own: Own, each: list[int]) -> Distiller:
        return schemes.retrospection(
            setting.student,
            setting.student,
            tasks=groups(setting),
            steps=each,
            expert_steps=each[0] // 2,
            optimizer=setting.optimizer(each[0] // 2),
            softmax=continual.joint_softmax,
        )

    return trial(setting, 2 * setting.steps, kd, KEPT)


def _held(setting: Setting, steps: int) -> Trial:
    """Offline distillation cannot be: no teacher knows classes that have not come. The plain form of LwF instead."""

    def kd(own: Own, each: list[int]) -> Distiller:
        return schemes.learning_without_forgetting(
            setting.student, tasks=groups(setting), steps=each, optimizer=setting.optimizer(each[0])
        )

    return trial(setting, steps, kd)


ROWS = {
    "lwf": Row("LwF, a head for each task", "lifelong", lwf(continual.per_task_softmax, 1.0), FINE_TUNED, _held),
    "lwf_single": Row("LwF, one head", "lifelong", lwf(continual.joint_softmax, 3.0), FINE_TUNED, _held),
    "lwf_kept": Row(
        f"LwF, one head, {KEPT} retained per class",
        "lifelong",
        lwf(continual.joint_softmax, 3.0, KEPT),
        FINE_TUNED,
        _held,
    ),
    "retrospection": Row(f"retrospection, {KEPT} retained per class", "lifelong", retrospection, FINE_TUNED, _held),
}
