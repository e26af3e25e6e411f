"""Self-distillation over depth: the deepest classifier teaches earlier exits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxkd import adapters, losses, teachers
from jaxkd import metrics as metrics_lib
from jaxkd._core import checks
from jaxkd.distillers import distill
from jaxkd.objectives import combine, select, term
from jaxkd.types import Array, Context, Distiller, Metrics, Model, Objective, Schedule
from jaxkd.wrappers import Exit, with_exits


def byot(
    model: Model,
    exits: Mapping[str, Exit],
    *,
    optimizer: optax.GradientTransformation,
    feature: str | None,
    alpha: float | Array | Schedule = 0.3,
    temperature: float | Schedule = 3.0,
    feature_weight: float | Array | Schedule = 1e-4,
    weight: float | Array | Schedule = 1.0,
    label_path: str = "batch/label",
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """``CE(p_C) + Σ_i (1 − α) CE(p_i) + α T² KL(p_C ‖ p_i) + λ ‖F_i − F_C‖²``.

    Also known as: BYOT (be your own teacher).

    Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation",
    ICCV 2019, section 3. The sum is over the exits i; p_C and F_C are the prediction and the feature of the deepest
    classifier, which learns from the labels only: gradients of the other terms reach it only through shared layers. A
    feature F is the input of a classifier, a vector of the same size for all of them.

    The authors' code has α = 0.3 and T = 3, the defaults, but no T². Its last version compares a learned linear map of
    F_i by the norm (not squared) over the whole batch, with weight 0.03, and omits the shallowest exit. A popular
    reimplementation has T², α = 0.1, a weight 1 − α also on the deepest classifier's cross-entropy, and λ = 1e-6 on the
    sum over a batch of 128, which is about the default here.

    Args:
      model: model with taps where exits begin, from an adapter.
      exits: exits by name; `exit_head` builds heads. The feature term needs heads that return ``feature``.
      optimizer: any optax transformation, for the network and its exits.
      feature: name of the model's output F_C, such as a tap at the pooled feature; None omits the feature term.
      alpha: α in [0, 1], or a schedule of the step.
      temperature: T, a number or a schedule.
      feature_weight: λ, a number or a schedule.
      weight: weight of all exits, a number or a schedule.
      label_path: path of integer classes ``[batch]``.
      metrics: function of a `Context`, or several, reported by ``evaluate`` beside the terms; by default
        `jaxkd.metrics.classification` of the deepest classifier, and ``NAME/accuracy`` of each exit.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms.

    Returns:
      A `Distiller`. ``wrappers.get_member(state.student, "model")`` are the variables of the model without the exits.
      The terms are ``ce`` and, for each exit, ``NAME/ce``, ``NAME/kd`` and ``NAME/feature``.

    Raises:
      ValueError: there are no exits, a name is reserved, or α is outside [0, 1]; from ``init``: the model has no such
        output, or a feature differs in size from F_C.

    >>> network = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(8), nn.relu, nn.Dense(3)])
    >>> model = adapters.linen(network, taps={"first": "layers_0", "last": "layers_2"})
    >>> kd = byot(model, {"early": Exit("first", exit_head(3, 8))}, optimizer=optax.sgd(0.1), feature="last")
    >>> batch = {"image": jnp.ones((4, 2)), "label": jnp.array([0, 1, 2, 0])}
    >>> state, metrics = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> [name for name in metrics if not name.endswith("weight")]
    ['ce', 'early/ce', 'early/feature', 'early/kd', 'loss']
    """
    if "ce" in exits:
        raise ValueError(
            "byot, exits: the name 'ce' is reserved for the cross-entropy of the deepest classifier, rename this exit."
        )
    if not callable(alpha) and not isinstance(alpha, jax.core.Tracer) and not 0 <= alpha <= 1:
        raise ValueError(f"byot, alpha: expected a number from 0 to 1, or a schedule, got {alpha}.")

    def weighted(share: Any) -> Schedule:
        return lambda step: _at(weight, step) * _at(share, step)

    label_weight = weighted(lambda step: 1 - _at(alpha, step))
    pair = "student/logits", "teacher/logits"
    terms: dict[str, Objective] = {
        "ce": term(losses.cross_entropy, "student/logits", label_path, weight=label_weight),
        "kd": term(losses.soft_target_kl, *pair, weight=weighted(alpha), temperature=temperature),
    }
    if feature is not None:
        terms["feature"] = term(
            _squared_distance, "student/feature", f"teacher/{feature}", weight=weighted(feature_weight)
        )
    per_exit = {name: select(combine(**terms), student=name, teacher="") for name in exits}
    return distill(
        with_exits(model, exits),
        teachers.none(),
        combine(ce=term(losses.cross_entropy, "student/logits", label_path), **per_exit),
        optimizer=optimizer,
        metrics=_each(tuple(exits)) if metrics is None else metrics,
        train_metrics=train_metrics,
    )


def exit_head(num_classes: int, hidden_size: int, *, shrink: int = 1) -> Model:
    """Builds a bottleneck with a classifier, for `jaxkd.wrappers.Exit`.

    On a map: a 1×1 convolution to a quarter of the features, one of size and stride ``shrink``, and a 1×1 convolution
    to all features, each with BatchNorm and ReLU; then the global mean and a linear classifier. This is the form of the
    exits of Zhang et al., ICCV 2019, figure 2, in public code, where ``shrink`` is the size of the map divided by that
    of the network's last map. On a vector, dense layers replace the convolutions.

    Args:
      num_classes: number of classes.
      hidden_size: number of features before the classifier; for `byot`, that of the network's own classifier.
      shrink: factor by which the map becomes smaller.

    Returns:
      A `Model` that reads the batch entry ``feature`` and returns ``logits`` and a ``feature`` ``[batch, features]``.

    Raises:
      ValueError: a number is not positive; from ``init`` and ``apply``: the feature is neither a map nor a vector, or
        the map is smaller than ``shrink``.

    >>> head = exit_head(10, 64, shrink=4)
    >>> batch = {"feature": jnp.ones((2, 8, 8, 16))}
    >>> outputs, _ = head.apply(head.init(jax.random.key(0), batch), batch, key=None, train=False)
    >>> outputs["logits"].shape, outputs["feature"].shape
    ((2, 10), (2, 64))
    """
    for name, number in (("num_classes", num_classes), ("hidden_size", hidden_size), ("shrink", shrink)):
        if number < 1:
            raise ValueError(f"exit_head, {name}: expected a positive number, got {number}.")
    return adapters.linen(_Head(num_classes, hidden_size, shrink), inputs="feature")


class _Head(nn.Module):
    classes: int
    features: int
    shrink: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> dict[str, Array]:
        if x.ndim not in (2, 4) or (x.ndim == 4 and min(x.shape[1:3]) < self.shrink):
            raise ValueError(
                f"exit_head: expected a vector [batch, features] or a map [batch, height, width, channels] of at least "
                f"{self.shrink} x {self.shrink}, got {checks.shape(x)}."
            )
        middle = max(self.features // 4, 1)
        for size, width in ((1, middle), (self.shrink, middle), (1, self.features)):
            if x.ndim == 4:
                x = nn.Conv(width, (size, size), strides=size, padding="VALID", use_bias=False)(x)
            else:
                x = nn.Dense(width, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        feature = x.mean(axis=(1, 2)) if x.ndim == 4 else x
        return {"logits": nn.Dense(self.classes)(feature), "feature": feature}


def _squared_distance(student: Array, teacher: Array, *, where: Array | None = None) -> Array:
    """Computes ``‖F_i − F_C‖²`` of each example."""
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"byot, feature: expected vectors [batch, features] of one size, got {list(student.shape)} from the exit "
            f"and {list(teacher.shape)} from the model. Tap the model's pooled feature, and give exit_head the same "
            "number of features."
        )
    dtype = jnp.result_type(student, teacher, jnp.float32)
    student, teacher = student.astype(dtype), teacher.astype(dtype)
    if where is not None:
        student, teacher = (jnp.where(where[:, None], x, 0) for x in (student, teacher))
    return jnp.sum((student - teacher) ** 2, axis=1)


def _each(names: tuple[str, ...]) -> Callable[[Context], Metrics]:
    """Returns metrics of the deepest classifier, and the accuracy of each exit."""

    def metrics(context: Context) -> Metrics:
        reported = dict(metrics_lib.classification(context))
        for name in names:
            logits = context.student[f"{name}/logits"]
            one = metrics_lib.classification(context._replace(student={"logits": logits}, teacher={}))
            reported |= {f"{name}/accuracy": one["accuracy"]} if "accuracy" in one else {}
        return reported

    return metrics


def _at(value: Any, step: Any) -> Any:
    return value(step) if callable(value) else value
