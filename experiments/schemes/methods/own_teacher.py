"""The student as its own teacher, by depths, classes, views or past outputs."""

from __future__ import annotations

from collections.abc import Callable

import jaxkd
from experiments.schemes.method import CE, Method, Setting, Training
from jaxkd import data, losses, objectives, schemes, teachers, wrappers
from jaxkd.types import Objective


def depths(setting: Setting) -> Training:
    """Returns the training of exits after the first two stages by the last layer."""
    pooled = {"digits": 32, "cifar100": 64}[setting.problem.name]
    head = schemes.self_distillation.exit_head(setting.problem.classes, hidden_size=pooled)
    exits = {"early": wrappers.Exit("stage1", head), "middle": wrappers.Exit("stage2", head)}
    return setting.training(
        lambda own: schemes.byot(setting.student, exits, optimizer=setting.optimizer(), feature="pooled"),
        pick=lambda state: wrappers.get_member(state.student, "model"),
        needs=(),
    )


def classes(setting: Setting) -> Training:
    """Returns the training of an example by the output for another of its class."""
    problem, batch = setting.problem, setting.config.batch
    return setting.training(
        lambda own: schemes.class_wise(setting.student, optimizer=setting.optimizer()),
        train=data.with_pair(data.compose(problem.augment, problem.normalize)),
        loader=lambda images, seed: data.SameClass(data.Resident(images, batch, drop_remainder=True)),
        needs=(),
    )


def views(setting: Setting) -> Training:
    """Returns the training of two distortions of an example by each other."""
    return setting.training(
        lambda own: schemes.distorted_views(setting.student, optimizer=setting.optimizer(), feature="pooled"),
        train=data.two_views(data.compose(setting.problem.augment, setting.problem.normalize)),
        needs=(),
    )


def without_teacher(objective: Callable[[Setting], Objective]) -> Callable[[Setting], Training]:
    """Returns the training of the student by an objective that needs no teacher."""

    def build(setting: Setting) -> Training:
        made, optimizer = objective(setting), setting.optimizer()
        return setting.training(
            lambda own: jaxkd.distill(setting.student, teachers.none(), made, optimizer=optimizer), needs=()
        )

    return build


def past(setting: Setting) -> Objective:
    """Returns the objective whose labels the student's past outputs soften."""
    count = 1 + max(int(images.arrays["index"].max()) for images in setting.problem.students)
    return jaxkd.combine(ps_kd=objectives.progressive_self_kd(count, alpha=0.8, steps=setting.steps))


VIRTUAL = jaxkd.combine(
    ce=CE, virtual=jaxkd.term(losses.virtual_teacher_kl, "student/logits", "batch/label", temperature=20.0, weight=0.1)
)

METHODS = {
    "tf_virtual": Method("virtual teacher (Tf-KD)", "self", without_teacher(lambda setting: VIRTUAL)),
    "byot": Method("be your own teacher", "self", depths),
    "cs_kd": Method("class-wise (CS-KD)", "self", classes),
    "ddgsd": Method("two views (DDGSD)", "self", views),
    "ps_kd": Method("past predictions (PS-KD)", "self", without_teacher(past)),
}
