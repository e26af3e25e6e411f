"""The student as its own teacher: its depths, its classes, its views, its past, and a teacher that is not there."""

from __future__ import annotations

from typing import Any

import jaxkd
from experiments.schemes.trials import CE, Own, Row, Setting, Trial
from jaxkd import data, losses, objectives, schemes, teachers, wrappers
from jaxkd.types import Distiller


def depths(setting: Setting) -> Trial:
    """Exits after the first two stages learn from the labels and the last layer."""
    pooled = {"digits": 32, "cifar100": 64}[setting.problem.name]
    head = schemes.self_distillation.exit_head(setting.problem.classes, hidden_size=pooled)
    exits = {"early": wrappers.Exit("stage1", head), "middle": wrappers.Exit("stage2", head)}

    def make(own: Own) -> Distiller:
        kd = schemes.byot(setting.student, exits, optimizer=setting.optimizer(), feature="pooled")
        return setting.placed(kd)

    return Trial(
        make, setting.steps, setting.student, lambda state: wrappers.get_member(state.student, "model"), needs=()
    )


def classes(setting: Setting) -> Trial:
    """An example learns what the student says of another one of its class."""
    problem = setting.problem
    prepared = data.with_pair(data.compose(problem.augment, problem.normalize))

    def make(own: Own) -> Distiller:
        return setting.placed(schemes.class_wise(setting.student, optimizer=setting.optimizer()), train=prepared)

    def loader(images: data.Dataset, seed: int) -> Any:
        return data.SameClass(data.Resident(images, setting.config.batch, drop_remainder=True))

    return Trial(make, setting.steps, setting.student, loader=loader, needs=())


def views(setting: Setting) -> Trial:
    """Two distortions of an example learn from each other."""
    problem = setting.problem
    prepared = data.two_views(data.compose(problem.augment, problem.normalize))

    def make(own: Own) -> Distiller:
        kd = schemes.distorted_views(setting.student, optimizer=setting.optimizer(), feature="pooled")
        return setting.placed(kd, train=prepared)

    return Trial(make, setting.steps, setting.student, needs=())


def supervised_by(objective: jaxkd.Objective) -> Any:
    """The student with another objective and no teacher."""

    def build(setting: Setting) -> Trial:
        def make(own: Own) -> Distiller:
            kd = jaxkd.distill(setting.student, teachers.none(), objective, optimizer=setting.optimizer())
            return setting.placed(kd)

        return Trial(make, setting.steps, setting.student, needs=())

    return build


def past(setting: Setting) -> Trial:
    """What the student said of an example when it saw it last softens its label."""
    count = 1 + max(int(images.arrays["index"].max()) for images in setting.problem.students)
    objective = jaxkd.combine(ps_kd=objectives.progressive_self_kd(count, alpha=0.8, steps=setting.steps))
    trial: Trial = supervised_by(objective)(setting)
    return trial


VIRTUAL = jaxkd.combine(
    ce=CE, virtual=jaxkd.term(losses.virtual_teacher_kl, "student/logits", "batch/label", temperature=20.0, weight=0.1)
)

ROWS = {
    "tf_virtual": Row("virtual teacher (Tf-KD)", "self", supervised_by(VIRTUAL)),
    "byot": Row("be your own teacher", "self", depths),
    "cs_kd": Row("class-wise (CS-KD)", "self", classes),
    "ddgsd": Row("two views (DDGSD)", "self", views),
    "ps_kd": Row("past predictions (PS-KD)", "self", past),
}
