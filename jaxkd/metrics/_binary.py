"""Metrics of yes-or-no decisions: `binary` and `multilabel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxkd._core import batches, checks
from jaxkd.metrics._derived import derived, mean_of_present
from jaxkd.metrics._means import from_values
from jaxkd.types import Context, Derived, Mean, Metrics

if TYPE_CHECKING:
    from jaxtyping import Array


def binary(context: Context) -> Metrics:
    """Metrics of a binary classifier with one logit per example or token.

    Args:
      context: logits ``[...]`` or ``[..., 1]`` of both models, and labels ``[...]`` of 0 and 1. Masked entries, and
        those with another label, such as -1, are excluded.

    Returns:
      ``accuracy``, ``nll`` (in nats), ``precision``, ``recall`` and ``f1`` of the student. If the teacher has logits of
      the same shape, also ``teacher_accuracy``, and ``agreement``, the share with equal decisions.

    Raises:
      ValueError: there are no logits, or no labels for them.

    >>> context = Context({"logits": jnp.array([2.0, -1.0, 3.0])}, {}, {"label": jnp.array([1, 1, -1])}, step=0)
    >>> from jaxkd.metrics import compute
    >>> {name: round(value, 3) for name, value in compute(binary(context)).items()}
    {'accuracy': 0.5, 'nll': 0.72, 'precision': 1.0, 'recall': 0.5, 'f1': 0.667}
    """
    label = batches.lookup(context, "batch/label")
    student, teacher = _logits(context, label)
    return _decisions("binary", context, student, teacher, label)


def multilabel(context: Context) -> Metrics:
    """Metrics of a classifier that says yes or no to each of several labels.

    Args:
      context: logits ``[batch, labels]`` of both models, and labels of the same shape, of 0 and 1. Masked examples, and
        entries with another label, such as -1, are excluded.

    Returns:
      The metrics of `binary` over all entries; ``exact``, the share of examples with every decision right; and
      ``macro_f1``, the mean F1 of the labels that occur or are predicted.

    Raises:
      ValueError: there are no logits, or no labels of their shape.

    >>> label = jnp.array([[1, 0], [1, 1]])
    >>> context = Context({"logits": jnp.array([[1.0, -1.0], [2.0, -2.0]])}, {}, {"label": label}, step=0)
    >>> from jaxkd.metrics import compute
    >>> found = compute(multilabel(context))
    >>> found["accuracy"], found["exact"], found["macro_f1"]
    (0.75, 0.5, 0.5)
    """
    label = batches.lookup(context, "batch/label")
    student, teacher = batches.lookup(context, "student/logits"), context.teacher.get("logits")
    found = _decisions("multilabel", context, student, teacher, label)
    where = _included(context, label)
    wrong = jnp.any(where & ((student > 0) != (label > 0.5)), axis=-1)
    found["exact"] = from_values(~wrong, jnp.any(where, axis=-1))
    rest = tuple(range(label.ndim - 1))
    found["macro_f1"] = derived(mean_of_present, _f1(student > 0, label > 0.5, where, axis=rest))
    return found


def _logits(context: Context, label: Array) -> tuple[Array, Array | None]:
    """Returns both models' logits, without a last axis of one class."""

    def plain(x: Any) -> Any:
        return x[..., 0] if x is not None and x.shape == (*label.shape, 1) else x

    return plain(batches.lookup(context, "student/logits")), plain(context.teacher.get("logits"))


def _included(context: Context, label: Array) -> Array:
    valid = (label >= 0) & (label <= 1)
    mask = batches.mask_of_shape(context, label.shape)
    return valid if mask is None else valid & mask


def _decisions(
    name: str, context: Context, student: Array, teacher: Array | None, label: Array
) -> dict[str, Mean | Derived]:
    if student.shape != label.shape:
        raise ValueError(
            f"{name}: expected one label of 0 or 1 for each logit, got logits {checks.shape(student)} and labels "
            f"{checks.shape(label)}."
        )
    where, yes = _included(context, label), label > 0.5
    logits = jnp.where(where, student, 0).astype(jnp.promote_types(student.dtype, jnp.float32))
    target = jnp.where(where, label, 0).astype(logits.dtype)
    nll = target * jax.nn.softplus(-logits) + (1 - target) * jax.nn.softplus(logits)
    positive = student > 0
    found: dict[str, Mean | Derived] = {
        "accuracy": from_values(positive == yes, where),
        "nll": from_values(nll, where),
        "precision": from_values(yes, where & positive),
        "recall": from_values(positive, where & yes),
        "f1": _f1(positive, yes, where),
    }
    if teacher is not None and teacher.shape == student.shape:
        found["teacher_accuracy"] = from_values((teacher > 0) == yes, where)
        found["agreement"] = from_values((teacher > 0) == positive, where)
    return found


def _f1(positive: Array, yes: Array, where: Array, axis: tuple[int, ...] | None = None) -> Mean:
    """Returns 2 TP / (2 TP + FP + FN), which is a mean, as its sum and count."""
    both, either = (jnp.sum(where & x, axis=axis, dtype=jnp.float32) for x in (positive & yes, positive ^ yes))
    return Mean(2 * both, 2 * both + either)
