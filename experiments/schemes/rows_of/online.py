"""Networks that teach each other while they learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

import jaxkd
from experiments.schemes.trials import CE, Own, Row, Setting, Trial, both, soft
from jaxkd import adapters, losses, objectives, schemes, wrappers
from jaxkd.types import Distiller, Model, TrainState, Variables

Build = Callable[[Setting], Trial]
KL1 = soft(temperature=1.0)
"""Deep mutual learning's divergence, of T = 1."""


def trial(setting: Setting, make: Callable[[Own], Distiller], name: str) -> Trial:
    """A training of several networks, of which one is the student."""

    def pick(state: TrainState) -> Variables:
        return wrappers.get_member(state.student, name)

    def placed(own: Own) -> Distiller:
        return setting.placed(make(own))

    return Trial(placed, setting.steps, setting.student, pick, needs=())


def one_way(setting: Setting) -> Trial:
    """The usual teacher, untrained, learns beside its student."""
    teacher = setting.problem.network("teacher")

    def make(own: Own) -> Distiller:
        return schemes.online(
            setting.student, teacher, both(), teacher_objective=jaxkd.combine(ce=CE), optimizer=setting.optimizer()
        )

    return trial(setting, make, "student")


def peers(setting: Setting, count: int) -> Mapping[str, Model]:
    """As many networks of the student's form; by name rather than mapped over, which a CPU prefers."""
    return {str(i): setting.student for i in range(count)}


def mutual(count: int, objective: jaxkd.Objective, *others: str) -> Build:
    """Peers, and perhaps networks of other sizes."""

    def build(setting: Setting) -> Trial:
        students = {**peers(setting, count), **{size: setting.problem.network(size) for size in others}}

        def make(own: Own) -> Distiller:
            return schemes.mutual(students, own=jaxkd.combine(ce=CE), mutual=objective, optimizer=setting.optimizer())

        return trial(setting, make, "0")

    return build


def diverse(setting: Setting) -> Trial:
    """Three auxiliary peers and a leader, which is the student."""

    def make(own: Own) -> Distiller:
        return schemes.diverse_peers(
            peers(setting, 3),
            setting.student,
            feature="pooled",
            own=CE,
            optimizer=setting.optimizer(),
            weight=schemes.peers.ramp_up(setting.steps // 4),
        )

    return trial(setting, make, "leader")


class Head(nn.Module):
    """What follows the second stage in a branch: a dense layer of the pooled map, and a classifier."""

    classes: int
    features: int = 32

    @nn.compact
    def __call__(self, x, train: bool = False):  # type: ignore[no-untyped-def]
        """Logits of a map."""
        x = nn.relu(nn.Dense(self.features)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes)(jnp.asarray(x))


def branches(setting: Setting) -> Trial:
    """Two branches at the second stage beside the student's own top."""
    head = adapters.linen(Head(setting.problem.classes), inputs="feature")
    exits = {name: wrappers.Exit("stage2", head) for name in ("one", "two")}

    def make(own: Own) -> Distiller:
        return schemes.branches(
            setting.student,
            exits,
            feature="stage2",
            own=CE,
            taught=soft(temperature=3.0),
            optimizer=setting.optimizer(),
        )

    return trial(setting, make, "model")


def collaborative(ensemble: Callable[[Any, Any], Any]) -> Build:
    """Two peers taught by an ensemble of both that the labels choose."""

    def build(setting: Setting) -> Trial:
        def make(own: Own) -> Distiller:
            return schemes.collaborative(
                peers(setting, 2),
                own=CE,
                taught=soft(temperature=3.0),
                ensemble=ensemble,
                optimizer=setting.optimizer(),
            )

        return trial(setting, make, "0")

    return build


RELATIONS = jaxkd.combine(
    kl=KL1,
    distance=jaxkd.term(losses.distance_relation, "student/pooled", "teacher/pooled", weight=1.0),
    angle=jaxkd.term(losses.angle_relation, "student/pooled", "teacher/pooled", weight=2.0),
)

ROWS = {
    "online": Row("one-way, teacher in the same step", "online", one_way),
    "dml": Row("deep mutual learning, 2 peers", "online", mutual(2, jaxkd.combine(kl=KL1))),
    "dml4": Row("deep mutual learning, 4 peers", "online", mutual(4, jaxkd.combine(kl=KL1))),
    "dml_mixed": Row("deep mutual learning, 2 sizes", "online", mutual(1, jaxkd.combine(kl=KL1), "teacher")),
    "okddip": Row("diverse peers (OKDDip)", "online", diverse),
    "one": Row("gated branches (ONE)", "online", branches),
    "kdcl_best": Row("collaborative, best (KDCL)", "online", collaborative(losses.best_logits)),
    "kdcl_linear": Row("collaborative, linear (KDCL)", "online", collaborative(losses.combined_logits)),
    "kdcl_min": Row("collaborative, min-logit (KDCL)", "online", collaborative(losses.min_logits)),
    "dml_rkd": Row("mutual learning with RKD", "composed", mutual(2, RELATIONS)),
    "dml_hint": Row(
        "mutual learning with hints",
        "composed",
        mutual(1, jaxkd.combine(kl=KL1, hint=objectives.hint("student/stage2", "teacher/stage2", weight=1.0)), "large"),
    ),
}
