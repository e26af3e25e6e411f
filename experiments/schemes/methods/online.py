"""Networks that teach each other while they learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

import jaxkd
from experiments.kit.methods import relations, soft_targets
from experiments.schemes.method import BOTH, CE, Make, Method, Own, Setting, Training
from jaxkd import adapters, losses, objectives, schemes, wrappers
from jaxkd.types import Distiller, Model

Build = Callable[[Setting], Training]
KL = soft_targets(temperature=1.0)
"""The divergence of deep mutual learning, at a temperature of 1."""


def training(setting: Setting, kd: Make, name: str) -> Training:
    """Returns the training of several networks, of which one is the student."""
    return setting.training(kd, pick=lambda state: wrappers.get_member(state.student, name), needs=())


def one_way(setting: Setting) -> Training:
    """Returns the training of the usual teacher, untrained, beside its student."""
    teacher = setting.problem.network("teacher")

    def kd(own: Own) -> Distiller:
        return schemes.online(
            setting.student, teacher, BOTH, teacher_objective=jaxkd.combine(ce=CE), optimizer=setting.optimizer()
        )

    return training(setting, kd, "student")


def peers(setting: Setting, count: int) -> Mapping[str, Model]:
    """Returns networks of the student's form, by name, which is faster on a CPU."""
    return {str(i): setting.student for i in range(count)}


def mutual(count: int, objective: jaxkd.Objective, *others: str) -> Build:
    """Returns mutual learning of peers, and of networks of other sizes."""

    def build(setting: Setting) -> Training:
        students = {**peers(setting, count), **{size: setting.problem.network(size) for size in others}}

        def kd(own: Own) -> Distiller:
            return schemes.mutual(students, own=jaxkd.combine(ce=CE), mutual=objective, optimizer=setting.optimizer())

        return training(setting, kd, "0")

    return build


def diverse(setting: Setting) -> Training:
    """Returns the training of three auxiliary peers and a leader, the student."""

    def kd(own: Own) -> Distiller:
        weight = schemes.peers.ramp_up(setting.steps // 4)
        students, optimizer = peers(setting, 3), setting.optimizer()
        return schemes.diverse_peers(
            students, setting.student, feature="pooled", own=CE, optimizer=optimizer, weight=weight
        )

    return training(setting, kd, "leader")


class Head(nn.Module):
    """The top of a branch: a dense layer of the flattened map, and a classifier."""

    classes: int
    features: int = 32

    @nn.compact
    def __call__(self, x, train: bool = False):  # type: ignore[no-untyped-def]
        """Returns the logits of a map."""
        x = nn.relu(nn.Dense(self.features)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes)(jnp.asarray(x))


def branches(setting: Setting) -> Training:
    """Returns the training of two branches beside the student's own top."""
    head = adapters.linen(Head(setting.problem.classes), inputs="feature")
    exits = {name: wrappers.Exit("stage2", head) for name in ("one", "two")}

    def kd(own: Own) -> Distiller:
        taught, optimizer = soft_targets(temperature=3.0), setting.optimizer()
        return schemes.branches(setting.student, exits, feature="stage2", own=CE, taught=taught, optimizer=optimizer)

    return training(setting, kd, "model")


def collaborative(ensemble: Callable[[Any, Any], Any]) -> Build:
    """Returns the training of two peers by an ensemble of both that the labels choose."""

    def build(setting: Setting) -> Training:
        def kd(own: Own) -> Distiller:
            taught, optimizer = soft_targets(temperature=3.0), setting.optimizer()
            return schemes.collaborative(
                peers(setting, 2), own=CE, taught=taught, ensemble=ensemble, optimizer=optimizer
            )

        return training(setting, kd, "0")

    return build


HINT = objectives.hint("student/stage2", "teacher/stage2", weight=1.0)

METHODS = {
    "online": Method("one-way, teacher in the same step", "online", one_way),
    "dml": Method("deep mutual learning, 2 peers", "online", mutual(2, jaxkd.combine(kl=KL))),
    "dml4": Method("deep mutual learning, 4 peers", "online", mutual(4, jaxkd.combine(kl=KL))),
    "dml_mixed": Method("deep mutual learning, 2 sizes", "online", mutual(1, jaxkd.combine(kl=KL), "teacher")),
    "okddip": Method("diverse peers (OKDDip)", "online", diverse),
    "one": Method("gated branches (ONE)", "online", branches),
    "kdcl_best": Method("collaborative, best (KDCL)", "online", collaborative(losses.best_logits)),
    "kdcl_linear": Method("collaborative, linear (KDCL)", "online", collaborative(losses.combined_logits)),
    "kdcl_min": Method("collaborative, min-logit (KDCL)", "online", collaborative(losses.min_logits)),
    "dml_rkd": Method("mutual learning with RKD", "composed", mutual(2, jaxkd.combine(kl=KL, **relations(1.0, 2.0)))),
    "dml_hint": Method("mutual learning with hints", "composed", mutual(1, jaxkd.combine(kl=KL, hint=HINT), "large")),
}
