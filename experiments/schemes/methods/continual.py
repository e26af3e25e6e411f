"""Classes that come in tasks, and the forgetting of earlier ones."""

from collections.abc import Callable
from typing import Any

import jaxkd
from experiments.schemes.method import Method, Own, Setting, Training, deferred
from jaxkd import data, metrics, schemes
from jaxkd.objectives import continual
from jaxkd.types import Distiller

TASKS = 5
KEPT = 4  # examples of each old class that are retained, where any are

Timed = Callable[[Setting, int], Training]


def groups(setting: Setting) -> list[list[int]]:
    return [list(group) for group in data.class_groups(setting.problem.classes, TASKS)]


def training(setting: Setting, steps: int, kd: Callable[[Own, list[int]], Distiller], kept: int = 0) -> Training:
    """Returns the training of a student on one task after the other."""
    tasks, batch = groups(setting), setting.config.batch
    each = [max(steps // TASKS, 1)] * TASKS  # equal, so that evaluations fall on the ends of tasks

    def loader(images: data.Dataset, seed: int) -> Any:
        # Equally many of each class, so that the tasks of all seeds have one size.
        each_class = max(setting.config.images // setting.problem.classes - 1, 1)
        parts = [data.exemplars(part, per_class=each_class) for part in data.class_incremental(images, tasks)]
        size = min(batch, *(data.num_examples(part) for part in parts))
        loaders = [data.Resident(part, size, drop_remainder=True) for part in parts]
        if not kept:
            return data.Tasks(loaders, each)
        retained = [data.exemplars(part, per_class=kept) for part in parts]
        return data.Tasks(loaders, each, retained=retained, retained_size=size // 4)

    options: Any = {"loader": loader, "every": each[0], "metrics": metrics.per_task(tasks, steps=each)}
    return setting.training(lambda own: kd(own, each), steps=sum(each), needs=(), **options)


def fine_tuned(setting: Setting, steps: int) -> Training:
    """Returns the training without a teacher: later tasks overwrite earlier ones."""

    def kd(own: Own, each: list[int]) -> Distiller:
        ce = continual.task_cross_entropy(groups(setting), each, softmax=continual.joint_softmax)
        objective, optimizer = jaxkd.combine(ce=ce), setting.optimizer(each[0])
        return schemes.lifelong(setting.student, objective, steps=each, optimizer=optimizer)

    return training(setting, steps, kd)


@deferred
def lwf(setting: Setting, steps: int, kept: int = 0, **options: Any) -> Training:

    def kd(own: Own, each: list[int]) -> Distiller:
        given: Any = {"tasks": groups(setting), "steps": each, "optimizer": setting.optimizer(each[0])}
        return schemes.learning_without_forgetting(setting.student, **given, **options)

    return training(setting, steps, kd, kept)


def retrospection(setting: Setting, steps: int) -> Training:
    """Returns the training of an expert for each task, then by both teachers."""

    def kd(own: Own, each: list[int]) -> Distiller:
        half, student, softmax = each[0] // 2, setting.student, continual.joint_softmax
        options: Any = {"steps": each, "expert_steps": half, "optimizer": setting.optimizer(half), "softmax": softmax}
        return schemes.retrospection(student, student, tasks=groups(setting), **options)

    return training(setting, 2 * steps, kd, KEPT)


def _method(title: str, build: Timed) -> Method:
    # Offline distillation does not exist here: no teacher knows later classes. The plain form of LwF replaces it.
    return Method(title, "lifelong", lambda setting: build(setting, setting.steps), fine_tuned, lwf())


SINGLE: Any = {"softmax": continual.joint_softmax, "old_weight": 3.0}

METHODS = {
    "lwf": _method("LwF, a head for each task", lwf(softmax=continual.per_task_softmax, old_weight=1.0)),
    "lwf_single": _method("LwF, one head", lwf(**SINGLE)),
    "lwf_kept": _method(f"LwF, one head, {KEPT} retained per class", lwf(KEPT, **SINGLE)),
    "retrospection": _method(f"retrospection, {KEPT} retained per class", retrospection),
}
