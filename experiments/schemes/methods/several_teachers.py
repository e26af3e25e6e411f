"""Several teachers, the student's average, and teachers that flow into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

import jaxkd
from experiments.kit.methods import decoupled, soft_targets
from experiments.schemes.method import BOTH, CE, Method, Own, Setting, Training, taught
from jaxkd import losses, objectives, schemes, teachers, wrappers
from jaxkd.types import Distiller, Objective, Teacher

TWO = {"a": "teacher", "b": "large"}
"""The members of an ensemble: networks by their names in it."""


def ensemble(objective: Objective, **options: Any) -> Callable[[Setting], Training]:
    """Returns the training of a student by both networks as one teacher."""

    def build(setting: Setting) -> Training:
        def teacher(own: Own) -> Teacher:
            return teachers.ensemble({name: setting.teacher(own, size, size) for name, size in TWO.items()}, **options)

        needs = tuple(TWO.values())
        return taught(setting, setting.steps, setting.student, teacher, objective=objective, needs=needs)

    return build


def average(objective: Objective) -> Callable[[Setting], Training]:
    """Returns the training of a student by its own moving average."""

    def build(setting: Setting) -> Training:
        def teacher(own: Own) -> Teacher:
            return teachers.ema(setting.student, decay=jaxkd.distillers.ema_warmup(0.99))

        return taught(setting, setting.steps, setting.student, teacher, objective=objective, needs=())

    return build


def label_sets(setting: Setting) -> Training:
    """Returns the training by two teachers, each of which knows half of the classes."""
    count = setting.problem.classes
    halves = {"a": list(range(count // 2)), "b": list(range(count // 2, count))}
    student = wrappers.select_classes(setting.student, {f"of_{name}": known for name, known in halves.items()})
    terms = {
        name: jaxkd.term(losses.soft_target_kl, f"student/of_{name}", f"teacher/{name}/known", temperature=4.0)
        for name in halves
    }

    def kd(own: Own) -> Distiller:
        half = setting.problem.network("half")
        members = {
            name: teachers.frozen(wrappers.expand_classes(half, known, count), own[f"half_{name}"])
            for name, known in halves.items()
        }
        teacher = teachers.ensemble(members, average=teachers.average_probabilities(4.0))
        return jaxkd.distill(student, teacher, jaxkd.combine(ce=CE, **terms), optimizer=setting.optimizer())

    return setting.training(kd, needs=("half_a", "half_b"))


def flow(setting: Setting) -> Training:
    """Returns the training of a student into which the teacher's stages flow."""
    problem = setting.problem
    taps = problem.taps("student")
    mixes = {name: wrappers.FlowEdge(taps[name], [name]) for name in ("stage1", "stage2", "stage3")}
    share = optax.linear_schedule(1.0, 0.0, setting.steps // 2)
    student = wrappers.with_flow(problem.module("student"), mixes, share, taps={"pooled": taps["pooled"]})
    objective = jaxkd.combine(ce=CE, kd=soft_targets(), alone=schemes.transfer.dependence_loss(weight=10.0))

    # A map that grows as fast as its share falls would keep the student dependent until the last step.
    mapped = {name: {"weights": "student", "maps": "maps"} for name in mixes}
    optimizers = {"student": setting.optimizer(), "maps": optax.adam(1e-4)}
    optimizer = optax.multi_transform(optimizers, {"student": "student", "flow": mapped})

    def kd(own: Own) -> Distiller:
        teacher = setting.teacher(own)
        return schemes.knowledge_flow(
            student, teacher, objective, optimizer=optimizer, objective_optimizer=setting.optimizer()
        )

    return setting.training(kd, pick=lambda state: wrappers.extract_student(state.student))


CRD = objectives.crd_in_batch("student/pooled", "teacher/pooled", weight=0.1)
VOTES = jaxkd.term(
    losses.voted_dissimilarity, "student/pooled", ("teacher/a/pooled", "teacher/b/pooled"), margin=1.0, weight=0.1
)
LEARNED = objectives.learned_ensemble(temperature=4.0)
SEVERAL = "several teachers"

METHODS = {
    "ema": Method("mean (EMA) teacher", "self", average(BOTH)),
    "ema_crd": Method("mean teacher with CRD", "composed", average(jaxkd.combine(ce=CE, crd=CRD))),
    "averaged": Method("two teachers, averaged", SEVERAL, ensemble(BOTH)),
    "weighted": Method("two teachers, weighted 0.7 : 0.3", SEVERAL, ensemble(BOTH, weights={"a": 0.7, "b": 0.3})),
    "learned": Method("two teachers, learned weights", SEVERAL, ensemble(jaxkd.combine(ce=CE, kd=LEARNED))),
    "voted": Method(
        "two teachers, voted dissimilarity", SEVERAL, ensemble(jaxkd.combine(ce=CE, kd=soft_targets(), votes=VOTES))
    ),
    "label_sets": Method("two teachers of half the classes", SEVERAL, label_sets),
    "ensemble_dkd": Method("two teachers with DKD", "composed", ensemble(jaxkd.combine(ce=CE, dkd=decoupled()))),
    "knowledge_flow": Method("knowledge flow", SEVERAL, flow),
}
