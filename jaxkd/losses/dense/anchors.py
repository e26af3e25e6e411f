"""Losses of a detector's anchors: classes by sigmoids, and offsets of boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from .. import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["sigmoid_focal", "smooth_l1"]


def sigmoid_focal(
    logits: Float[Array, "*batch classes"],
    labels: Float[Array, "*batch classes"] | Int[Array, "*batch classes"] | Bool[Array, "*batch classes"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Focal loss of sigmoids with labels, each on or off, summed over the labels.

    Also known as: RetinaNet's focal loss.

    ``−Σ_k [α y_k (1 − p_k)^γ log p_k + (1 − α)(1 − y_k) p_k^γ log(1 − p_k)]`` with ``p = σ(z)``: a binary
    cross-entropy in which an anchor that is already right adds little. Lin et al., "Focal Loss for Dense Object
    Detection", ICCV 2017, equation 5. The paper divides the sum over all anchors by the number of those with an object.

    Args:
      logits: one for each class ``[..., classes]``, without a background.
      labels: 1 or True for the class of an anchor's object, of the logits' shape; an anchor of the background has none.
      alpha: α, weight of the labels that are on, from 0 to 1.
      gamma: γ ≥ 0; with 0 and α = 1/2, this is half the binary cross-entropy.
      where: mask, True for the anchors to include ``[...]``.

    Returns:
      One value per anchor ``[...]``, in nats. An included label outside [0, 1] gives NaN. A logit of ``-inf`` (or
      ``inf``) is a certain label: it adds 0 or infinity, with gradient 0.

    Raises:
      ValueError: shapes differ (nothing is broadcast), the logits are not floating point, or a number is out of range.

    >>> sigmoid_focal(jnp.array([[0.0, -2.0]]), jnp.array([[1, 0]])).round(4)
    Array([0.0447], dtype=float32)
    """
    logits, labels = _checks.floating("logits", logits, "logits [..., classes]", least_rank=1), jnp.asarray(labels)
    if labels.shape != logits.shape or jnp.issubdtype(labels.dtype, jnp.complexfloating):
        raise ValueError(
            f"labels: expected 0 or 1 for each of the logits {list(logits.shape)}, got "
            f"{labels.dtype}{list(labels.shape)}. Nothing is broadcast; jax.nn.one_hot of a class that is -1 is a row "
            "of zeros, the background."
        )
    _checks.fraction("alpha", alpha)
    _checks.not_negative("gamma", gamma)
    where = _checks.mask(where, logits.shape[:-1])
    logits, y = _numerics.mask_inputs(where, logits, labels.astype(logits.dtype))
    certain = jnp.isinf(logits)
    z = jnp.where(certain, 0, logits)
    # −log p and −log(1 − p) are two softplus of one logarithm. Selections, unlike abs, have both derivatives at 0.
    above = z >= 0
    rest = jnp.log1p(jnp.exp(jnp.where(above, -z, z)))
    on, off = jnp.where(above, 0, -z) + rest, jnp.where(above, z, 0) + rest
    # (1 − p)^γ and p^γ as exponentials: a power of 0 has an infinite derivative for γ < 1.
    values = alpha * y * jnp.exp(-gamma * off) * on + (1 - alpha) * (1 - y) * jnp.exp(-gamma * on) * off
    wrong = jnp.where(logits > 0, (1 - alpha) * (1 - y), alpha * y)
    values = jnp.where(certain, jnp.where(wrong > 0, jnp.inf, 0), values)
    values = jnp.where((y >= 0) & (y <= 1), values, jnp.nan)
    return _numerics.mask_values(jnp.sum(values, axis=-1), where)


def smooth_l1(
    student: Float[Array, "*batch coordinates"],
    target: Float[Array, "*batch coordinates"],
    *,
    beta: float = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Smooth L1 distance of boxes to their targets, summed over the coordinates.

    Also known as: Huber loss, divided by β.

    ``Σ_i x_i² / (2 β)`` where ``|x_i| < β``, and ``|x_i| − β / 2`` elsewhere, with ``x = R_s − y``. Girshick, "Fast
    R-CNN", ICCV 2015, equation 3, which has β = 1, as has SSD.

    Args:
      student: box regression ``[..., coordinates]``, usually four offsets from an anchor.
      target: that of the true boxes, of the same shape.
      beta: β > 0, the error at which the loss becomes linear.
      where: mask, True for the boxes to include ``[...]``: the anchors with an object.

    Returns:
      One value per box ``[...]``.

    Raises:
      ValueError: shapes differ, a dtype is not floating point, or β is not positive.

    >>> smooth_l1(jnp.array([[0.5, 3.0, 0.0, 0.0]]), jnp.zeros((1, 4)))
    Array([2.625], dtype=float32)
    """
    student = _checks.floating("student", student, "boxes [..., coordinates]", least_rank=1)
    target = _checks.floating("target", target, "boxes [..., coordinates]")
    _checks.same_shape(student, target, "gather the target of each anchor", name="target")
    _checks.positive("beta", beta)
    where = _checks.mask(where, student.shape[:-1])
    student, target = _numerics.mask_inputs(where, student, target)
    return _numerics.mask_values(jnp.sum(beta * _numerics.huber((student - target) / beta), axis=-1), where)
