"""Rows that compare logits, smooth labels or change the schedule."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.classification.study.networks import Taught
from experiments.classification.study.table import Part, Row, Rows
from experiments.kit import methods
from jaxkd import losses, objectives
from jaxkd.types import Objective

KIT = methods.METHODS
BOTH = ("student/logits", "teacher/logits")
HARD = ("student/logits", "batch/label")
ALPHAS = (0.1, 0.2, 0.5, 1.0, 2.0)  # of mixup and CutMix
DEFAULT = "weight; no published one is used, 1 here"


class Setting(NamedTuple):
    """What an objective may depend on."""

    steps: int  # steps of a training
    taught: Taught  # the teacher


def labels(weight: Any = 1.0, loss: Callable[..., Any] = losses.cross_entropy, **options: Any) -> Objective:
    """Returns a loss of the labels, where an image has one."""
    return jaxkd.term(loss, *HARD, weight=weight, where="batch/labeled", **options)


def beside(make: Callable[[Setting, Any], Objective], ce: float = 1.0) -> Callable[[Setting, Any], list[Part]]:
    """Returns the stages of a training with one objective beside the cross-entropy."""
    return lambda of, value: [Part(jaxkd.combine(ce=labels(ce), kd=make(of, value)))]


def logits(loss: Callable[..., Any], **options: Any) -> Callable[[Setting, Any], Objective]:
    return lambda of, value: jaxkd.term(loss, *BOTH, weight=value, **options)


def soft_targets(of: Setting, weight: Any) -> Objective:
    return methods.soft_targets(weight)


def _alone(of: Setting, value: Any) -> list[Part]:
    return [Part(labels(), rate=value)]


def _warm(of: Setting, value: Any) -> list[Part]:
    def rate(share: Any) -> Any:
        return jnp.minimum(share / value, 1.0) * 0.5 * (1 + jnp.cos(jnp.pi * share))

    return [Part(jaxkd.combine(ce=labels(0.1), kd=soft_targets(of, 0.9)), rate=rate)]


def _restarts(of: Setting, value: Any) -> list[Part]:
    def rate(share: Any) -> Any:
        return 0.5 * (1 + jnp.cos(jnp.pi * jnp.mod(share * value, 1.0)))

    return [Part(jaxkd.combine(ce=labels(0.1), kd=soft_targets(of, 0.9)), rate=rate)]


def _decoupled(of: Setting, value: Any) -> Objective:
    def risen(step: Any) -> Any:
        return value * jnp.minimum(step / (of.steps * methods.WARM_UP), 1.0)

    paths = (*BOTH, "batch/guess")
    return jaxkd.term(losses.decoupled_kd, *paths, weight=risen, alpha=1.0, beta=8.0, temperature=4.0)


def _standardized(student: Any, teacher: Any, *, temperature: float, where: Any = None) -> Any:
    pair = losses.standardize_logits(student), losses.standardize_logits(teacher)
    return losses.soft_target_kl(*pair, temperature=temperature, where=where)


def _global_temperature(of: Setting, value: Any) -> Objective:
    curriculum = objectives.cosine_curriculum(max(of.steps // 24, 1))
    return objectives.curriculum_temperature(difficulty=curriculum, weight=value)


def _own_temperature(of: Setting, value: Any) -> Objective:
    curriculum = objectives.cosine_curriculum(max(of.steps // 24, 1))
    return objectives.instance_temperature(hidden_size=32, difficulty=curriculum, weight=value)


def _mixed(of: Setting, value: Any) -> list[Part]:
    return [Part(jaxkd.term(losses.soft_cross_entropy, "student/logits", "batch/soft_label", where="batch/labeled"))]


def _smoothed(of: Setting, value: Any) -> list[Part]:
    return [Part(labels(1.0, losses.label_smoothing, smoothing=value))]


def _virtual(of: Setting, value: Any) -> list[Part]:
    return [Part(jaxkd.combine(ce=labels(), tf=labels(value, losses.virtual_teacher_kl)))]


def _row(title: str, parts: Any, published: float, source: str, covers: str, **others: Any) -> Row:
    return Row(title, parts, published, source, covers=covers, **others)


_kd = {"covers": "soft targets, knowledge distillation"}
_alone_options: Any = {"taught": False}
ROWS: Rows = {
    "student": _row(
        "student alone",
        _alone,
        1.0,
        "multiple of the common learning rate",
        "",
        grid=(0.1, 0.3, 1.0, 3.0, 10.0),
        **_alone_options,
    ),
    "kd": _row("KD", beside(soft_targets, 0.1), 0.9, "weight beside 0.1 of the labels, T = 4", _kd["covers"]),
    "logit_mse": _row("logit MSE", beside(logits(losses.logit_mse)), 1.0, DEFAULT, "logit matching"),
    "reverse_kl": _row("reverse KL", beside(logits(losses.reverse_kl)), 1.0, DEFAULT, "reverse KL"),
    "jsd": _row("JSD", beside(logits(losses.generalized_jsd)), 1.0, DEFAULT, "generalized Jensen-Shannon divergence"),
    "skew_kl": _row("skew KL", beside(logits(losses.skew_kl)), 1.0, DEFAULT, "skewed KL"),
    "skew_reverse_kl": _row("skew reverse KL", beside(logits(losses.skew_reverse_kl)), 1.0, DEFAULT, "skewed KL"),
    "total_variation": _row("total variation", beside(logits(losses.total_variation)), 1.0, DEFAULT, "total variation"),
    "dkd": _row("DKD", beside(_decoupled), 1.0, "weight; β = 8, T = 4", "decoupled knowledge distillation"),
    "dist": _row(
        "DIST",
        beside(logits(losses.dist, beta=1.0, gamma=1.0, temperature=4.0)),
        KIT["dist"].weights["dist"],
        "weight, T = 4",
        "distillation from a stronger teacher",
    ),
    "logit_std": _row(
        "logit standardization",
        beside(logits(_standardized, temperature=2.0), 0.1),
        KIT["logit_std"].weights["kd"],
        "weight beside 0.1 of the labels, T = 2",
        "logit standardization",
    ),
    "ctkd": _row(
        "CTKD, global", beside(_global_temperature, 0.1), 0.9, "weight beside 0.1 of the labels", "curriculum"
    ),
    "ctkd_instance": _row(
        "CTKD, instance", beside(_own_temperature, 0.1), 0.9, "weight beside 0.1 of the labels", "curriculum"
    ),
    "warm_up": _row(
        "KD, warm-up",
        _warm,
        0.1,
        "share of the training in which the rate rises",
        "warm-up, restarts, similarity of layers",
        grid=(0.02, 0.05, 0.1, 0.2, 0.4),
    ),
    "restarts": _row(
        "KD, restarts",
        _restarts,
        4.0,
        "number of cosine cycles",
        "warm-up, restarts, similarity of layers",
        grid=(2.0, 3.0, 4.0, 6.0, 8.0),
    ),
    "label_smoothing": _row(
        "label smoothing", _smoothed, 0.1, "ε", "label smoothing", grid=(0.02, 0.05, 0.1, 0.2, 0.4), **_alone_options
    ),
    "tf_kd": _row(
        "Tf-KD regularizer",
        _virtual,
        0.1,
        "weight; a = 0.99, T = 20; 0.1 here",
        "teacher-free distillation",
        **_alone_options,
    ),
    "mixup": _row(
        "mixup labels", _mixed, 1.0, "α of Beta(α, α)", "mixed labels", grid=ALPHAS, mix="mixup", **_alone_options
    ),
    "cutmix": _row(
        "CutMix labels", _mixed, 1.0, "α of Beta(α, α)", "mixed labels", grid=ALPHAS, mix="cutmix", **_alone_options
    ),
}
GUESS = np.int32  # dtype of the classes that stand in for unknown labels
