"""Several teachers, a teacher that is the student's own average, and teachers whose layers flow into the student."""

from __future__ import annotations

from collections.abc import Callable

import optax

import jaxkd
from experiments.schemes.trials import CE, Own, Row, Setting, Trial, both, soft
from jaxkd import losses, objectives, schemes, teachers, wrappers
from jaxkd.types import Distiller, Objective, Teacher

Build = Callable[[Setting], Trial]
TWO = {"a": "teacher", "b": "large"}
"""The members of an ensemble: networks by their names in it."""


def taught(objective: Objective, teacher: Callable[[Setting, Own], Teacher], *needs: str) -> Build:
    """A student of a teacher that is made of what a seed has."""

    def build(setting: Setting) -> Trial:
        def make(own: Own) -> Distiller:
            kd = jaxkd.distill(setting.student, teacher(setting, own), objective, optimizer=setting.optimizer())
            return setting.placed(kd)

        return Trial(make, setting.steps, setting.student, needs=needs)

    return build


def ensemble(**options: object) -> Callable[[Setting, Own], Teacher]:
    """Both networks as one teacher."""

    def make(setting: Setting, own: Own) -> Teacher:
        members = {name: setting.teacher(own, size, size) for name, size in TWO.items()}
        return teachers.ensemble(members, **options)  # type: ignore[arg-type]

    return make


def average(setting: Setting, own: Own) -> Teacher:
    """The student's own moving average."""
    return teachers.ema(setting.student, decay=jaxkd._core.moving_average.ema_warmup(0.99))


def label_sets(setting: Setting) -> Trial:
    """Two teachers, each of which knows one half of the classes."""
    count = setting.problem.classes
    halves = {"a": list(range(count // 2)), "b": list(range(count // 2, count))}
    student = wrappers.select_classes(setting.student, {f"of_{name}": known for name, known in halves.items()})
    terms = {
        name: jaxkd.term(losses.soft_target_kl, f"student/of_{name}", f"teacher/{name}/known", temperature=4.0)
        for name in halves
    }

    def make(own: Own) -> Distiller:
        members = {
            name: teachers.frozen(
                wrappers.expand_classes(setting.problem.network("half"), known, count), own[f"half_{name}"]
            )
            for name, known in halves.items()
        }
        teacher = teachers.ensemble(members, average=teachers.average_probabilities(4.0))
        objective = jaxkd.combine(ce=CE, **terms)
        return setting.placed(jaxkd.distill(student, teacher, objective, optimizer=setting.optimizer()))

    return Trial(make, setting.steps, setting.student, needs=("half_a", "half_b"))


def flow(setting: Setting) -> Trial:
    """The teacher's stages flow into the student's for the first half of training."""
    problem, steps = setting.problem, setting.steps
    taps = problem.taps("student")
    mixes = {name: wrappers.FlowEdge(taps[name], [name]) for name in ("stage1", "stage2", "stage3")}
    student = wrappers.with_flow(
        problem.module("student"), mixes, optax.linear_schedule(1.0, 0.0, steps // 2), taps={"pooled": taps["pooled"]}
    )
    objective = jaxkd.combine(ce=CE, kd=soft(), alone=schemes.transfer.dependence_loss(weight=10.0))

    # A map that grows as fast as its share falls would keep the student dependent until the last step.
    mapped = {name: {"weights": "student", "maps": "maps"} for name in mixes}
    optimizer = optax.multi_transform(
        {"student": setting.optimizer(), "maps": optax.adam(1e-4)}, {"student": "student", "flow": mapped}
    )

    def make(own: Own) -> Distiller:
        kd = schemes.knowledge_flow(
            student, setting.teacher(own), objective, optimizer=optimizer, objective_optimizer=setting.optimizer()
        )
        return setting.placed(kd)

    return Trial(make, steps, setting.student, lambda state: wrappers.extract_student(state.student))


NETWORKS = tuple(TWO.values())
VOTES = jaxkd.term(
    losses.voted_dissimilarity, "student/pooled", ("teacher/a/pooled", "teacher/b/pooled"), margin=1.0, weight=0.1
)

ROWS = {
    "ema": Row("mean (EMA) teacher", "self", taught(both(), average)),
    "ema_crd": Row(
        "mean teacher with CRD",
        "composed",
        taught(
            jaxkd.combine(ce=CE, crd=objectives.crd_in_batch("student/pooled", "teacher/pooled", weight=0.1)), average
        ),
    ),
    "averaged": Row("two teachers, averaged", "several teachers", taught(both(), ensemble(), *NETWORKS)),
    "weighted": Row(
        "two teachers, weighted 0.7 : 0.3",
        "several teachers",
        taught(both(), ensemble(weights={"a": 0.7, "b": 0.3}), *NETWORKS),
    ),
    "learned": Row(
        "two teachers, learned weights",
        "several teachers",
        taught(
            jaxkd.combine(ce=CE, kd=objectives.learned_ensemble(temperature=4.0)),
            ensemble(),
            *NETWORKS,
        ),
    ),
    "voted": Row(
        "two teachers, voted dissimilarity",
        "several teachers",
        taught(jaxkd.combine(ce=CE, kd=soft(), votes=VOTES), ensemble(), *NETWORKS),
    ),
    "label_sets": Row("two teachers of half the classes", "several teachers", label_sets),
    "ensemble_dkd": Row(
        "two teachers with DKD",
        "composed",
        taught(
            jaxkd.combine(
                ce=CE,
                dkd=jaxkd.term(losses.decoupled_kd, "student/logits", "teacher/logits", "batch/label", temperature=4.0),
            ),
            ensemble(),
            *NETWORKS,
        ),
    ),
    "knowledge_flow": Row("knowledge flow", "several teachers", flow),
}
