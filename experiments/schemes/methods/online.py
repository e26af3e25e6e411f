"""Networks that teach each other while they learn, and students that teach themselves."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

import jaxkd
from experiments.kit.methods import relations, soft_targets
from experiments.schemes.method import BOTH, CE, LABELS, Build, Method, Setting, Training, supervised, untaught
from jaxkd import adapters, data, losses, objectives, schemes, wrappers
from jaxkd.types import Distiller, Model, Objective


def one_way(setting: Setting) -> Distiller:
    """Returns the usual teacher, untrained, beside its student."""
    teacher, optimizer = setting.problem.network("teacher"), setting.optimizer()
    return schemes.online(setting.student, teacher, BOTH, teacher_objective=LABELS, optimizer=optimizer)


def peers(setting: Setting, count: int) -> dict[str, Model]:
    """Returns networks of the student's form, by name, which is faster on a CPU."""
    return {str(i): setting.student for i in range(count)}


def mutual(count: int, *others: str, **terms: Objective) -> Build:
    """Returns mutual learning of peers and networks of other sizes, at a temperature of 1 as published."""
    objective = jaxkd.combine(kl=soft_targets(temperature=1.0), **terms)

    def make(setting: Setting) -> Distiller:
        students = peers(setting, count) | {size: setting.problem.network(size) for size in others}
        return schemes.mutual(students, own=LABELS, mutual=objective, optimizer=setting.optimizer())

    return untaught(make, "0")


def diverse(setting: Setting) -> Distiller:
    """Returns three auxiliary peers and a leader, the student."""
    weight, optimizer = schemes.peers.ramp_up(setting.steps // 4), setting.optimizer()
    students, leader = peers(setting, 3), setting.student
    return schemes.diverse_peers(students, leader, feature="pooled", own=CE, optimizer=optimizer, weight=weight)


class Head(nn.Module):
    """The top of a branch: a dense layer of the flattened map, and a classifier."""

    classes: int
    features: int = 32

    @nn.compact
    def __call__(self, x, train: bool = False):  # type: ignore[no-untyped-def]
        x = nn.relu(nn.Dense(self.features)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes)(jnp.asarray(x))


def branches(setting: Setting) -> Distiller:
    """Returns two branches beside the student's own top."""
    head = adapters.linen(Head(setting.problem.classes), inputs="feature")
    exits = {name: wrappers.Exit("stage2", head) for name in ("one", "two")}
    taught, optimizer = soft_targets(temperature=3.0), setting.optimizer()
    return schemes.branches(setting.student, exits, feature="stage2", own=CE, taught=taught, optimizer=optimizer)


def collaborative(ensemble: Callable[[Any, Any], Any]) -> Build:
    """Returns the training of two peers by an ensemble of both that the labels choose."""

    def make(setting: Setting) -> Distiller:
        students, taught, optimizer = peers(setting, 2), soft_targets(temperature=3.0), setting.optimizer()
        return schemes.collaborative(students, own=CE, taught=taught, ensemble=ensemble, optimizer=optimizer)

    return untaught(make, "0")


# The student as its own teacher, by depths, classes, views or past outputs.


def depths(setting: Setting) -> Distiller:
    """Returns exits after the first two stages, taught by the last layer."""
    pooled = {"digits": 32, "cifar100": 64}[setting.problem.name]
    head = schemes.self_distillation.exit_head(setting.problem.classes, hidden_size=pooled)
    exits = {"early": wrappers.Exit("stage1", head), "middle": wrappers.Exit("stage2", head)}
    return schemes.byot(setting.student, exits, optimizer=setting.optimizer(), feature="pooled")


def classes(setting: Setting) -> Training:
    """Returns the training of an example by the output for another of its class."""
    kd = schemes.class_wise(setting.student, optimizer=setting.optimizer())
    return setting.training(
        lambda own: kd,
        train=data.with_pair(setting.problem.look),
        loader=lambda images, seed: data.SameClass(setting.batches(images)),
        needs=(),
    )


def views(setting: Setting) -> Training:
    """Returns the training of two distortions of an example by each other."""
    kd = schemes.distorted_views(setting.student, optimizer=setting.optimizer(), feature="pooled")
    return setting.training(lambda own: kd, train=data.two_views(setting.problem.look), needs=())


def past(setting: Setting) -> Training:
    """Returns the student with labels that its past outputs soften."""
    count = 1 + max(int(images.arrays["index"].max()) for images in setting.problem.students)
    objective = jaxkd.combine(ps_kd=objectives.progressive_self_kd(count, alpha=0.8, steps=setting.steps))
    return supervised(setting, setting.steps, setting.student, objective=objective)


def virtual(setting: Setting) -> Training:
    """Returns the student with a virtual teacher, made of the labels."""
    return supervised(setting, setting.steps, setting.student, objective=jaxkd.combine(ce=CE, virtual=VIRTUAL))


HINT = objectives.hint("student/stage2", "teacher/stage2", weight=1.0)
VIRTUAL = jaxkd.term(losses.virtual_teacher_kl, "student/logits", "batch/label", temperature=20.0, weight=0.1)

METHODS = {
    "online": Method("one-way, teacher in the same step", "online", untaught(one_way, "student")),
    "dml": Method("deep mutual learning, 2 peers", "online", mutual(2)),
    "dml4": Method("deep mutual learning, 4 peers", "online", mutual(4)),
    "dml_mixed": Method("deep mutual learning, 2 sizes", "online", mutual(1, "teacher")),
    "okddip": Method("diverse peers (OKDDip)", "online", untaught(diverse, "leader")),
    "one": Method("gated branches (ONE)", "online", untaught(branches, "model")),
    "kdcl_best": Method("collaborative, best (KDCL)", "online", collaborative(losses.best_logits)),
    "kdcl_linear": Method("collaborative, linear (KDCL)", "online", collaborative(losses.combined_logits)),
    "kdcl_min": Method("collaborative, min-logit (KDCL)", "online", collaborative(losses.min_logits)),
    "dml_rkd": Method("mutual learning with RKD", "composed", mutual(2, **relations(1.0, 2.0))),
    "dml_hint": Method("mutual learning with hints", "composed", mutual(1, "large", hint=HINT)),
    "tf_virtual": Method("virtual teacher (Tf-KD)", "self", virtual),
    "byot": Method("be your own teacher", "self", untaught(depths, "model")),
    "cs_kd": Method("class-wise (CS-KD)", "self", classes),
    "ddgsd": Method("two views (DDGSD)", "self", views),
    "ps_kd": Method("past predictions (PS-KD)", "self", past),
}
