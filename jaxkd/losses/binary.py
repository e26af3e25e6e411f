"""Losses of one logit per label, by its sigmoid: binary and multi-label losses.

A binary classifier has one label, ``[batch]`` or ``[batch, 1]``; a multi-label classifier has several, ``[batch, ...,
labels]``, whose values are summed as those of the classes are in a softmax loss. Divide by the number of labels for the
mean over them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from . import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["binary_cross_entropy", "binary_kl"]


def binary_cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Float[Array, "*batch classes"] | Int[Array, "*batch classes"] | Bool[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | Bool[Array, "*batch classes"] | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy of sigmoids with labels, each on or off, summed over the labels.

    Also known as: BCE (binary cross-entropy), sigmoid cross-entropy, multi-label loss.

    ``−Σ_k [y_k log σ(z_k) + (1 − y_k) log(1 − σ(z_k))]``, computed from the logits. PyTorch's ``BCEWithLogitsLoss``
    takes the mean over the labels too and is smaller by their number.

    Args:
      logits: one for each example ``[batch]``, or one for each label ``[batch, ..., labels]``.
      labels: 1 or True for the labels that are on, of the logits' shape; or their probabilities, from 0 to 1.
      where: mask, True for the examples to include ``[batch, ...]``, or for the labels ``[batch, ..., labels]``: an
        unknown label adds nothing.

    Returns:
      One value per example ``[batch, ...]``, in nats. An included label outside [0, 1], such as -1 for an unknown one,
      gives NaN. A logit of ``-inf`` (or ``inf``) is a certain label: it adds 0 or infinity, with gradient 0.

    Raises:
      ValueError: shapes differ (nothing is broadcast), or the logits are not floating point.

    >>> binary_cross_entropy(jnp.array([[0.0, 2.0, -2.0]]), jnp.array([[1, 1, 0]])).round(4)
    Array([0.947], dtype=float32)
    """
    logits, labels = _checks.floating("logits", logits, "logits [batch, ...]", least_rank=1), jnp.asarray(labels)
    if labels.shape != logits.shape or jnp.issubdtype(labels.dtype, jnp.complexfloating):
        raise ValueError(
            f"labels: expected 0 or 1, or a probability, for each of the logits {list(logits.shape)}, got "
            f"{labels.dtype}{list(labels.shape)}. Nothing is broadcast; cross_entropy takes one of several classes."
        )
    # A mixture of labels, which should sum to 1, may exceed it by a rounding error.
    slack = 4 * jnp.finfo(labels.dtype).eps if jnp.issubdtype(labels.dtype, jnp.floating) else 0
    known = (labels >= -slack) & (labels <= 1 + slack)
    targets = labels.astype(jnp.promote_types(logits.dtype, jnp.promote_types(labels.dtype, jnp.float32)))
    (logits, targets), included = _inputs(where, logits, jnp.where(known, targets, 0))
    certain = jnp.isinf(logits)
    z = jnp.where(certain, 0, logits)
    values = targets * jax.nn.softplus(-z) + (1 - targets) * jax.nn.softplus(z)
    values = jnp.where(certain, jnp.where(targets == (logits > 0), 0, jnp.inf), values)
    return _total(jnp.where(known.reshape(values.shape), values, jnp.nan), included)


def binary_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, "*#batch"] = 4.0,
    where: Bool[Array, "*batch"] | Bool[Array, "*batch classes"] | None = None,
) -> Float[Array, "*batch"]:
    """KL divergence of softened sigmoids, summed over the labels, times T².

    Also known as: binary KD, multi-label logits distillation (MLD).

    ``T² Σ_k KL(Bernoulli σ(z_t,k / T) ‖ Bernoulli σ(z_s,k / T))``: `soft_target_kl` (Hinton, Vinyals & Dean, 2015) of
    each label as the two classes on and off, with logits z and 0. The binary cross-entropy with the teacher's
    probabilities is larger by their entropies, which have no gradient for the student.

    Args:
      student: logits, one for each example ``[batch]``, or one for each label ``[batch, ..., labels]``.
      teacher: logits of the same shape.
      temperature: T > 0, a scalar or one for each example ``[batch, ...]``.
      where: mask, True for the examples to include ``[batch, ...]``, or for the labels ``[batch, ..., labels]``: an
        unknown label adds nothing.

    Returns:
      One value per example ``[batch, ...]``, in nats times T². It is infinite where only the student is certain, with
      a logit of ``-inf`` or ``inf``; the gradients are finite.

    Raises:
      ValueError: shapes differ (nothing is broadcast), a dtype is not floating point, or T is not positive.

    >>> binary_kl(jnp.array([[0.0, 1.0]]), jnp.array([[0.0, -3.0]]), temperature=2.0).round(4)
    Array([1.6313], dtype=float32)
    """
    student, teacher = (
        _checks.floating(name, x, "logits [batch, ...]", least_rank=1)
        for name, x in (("student", student), ("teacher", teacher))
    )
    _checks.same_shape(student, teacher, "reshape one of them, or select the labels that both networks have")
    examples = student.shape[:-1] if student.ndim > 1 else student.shape
    scale = _checks.temperature(temperature, student.dtype, examples)
    (student, teacher), included = _inputs(where, student, teacher)
    # An infinite logit over T has no derivative with respect to T.
    student, teacher = (
        jnp.where(jnp.isinf(x), x, jnp.where(jnp.isinf(x), 0, x) / scale[..., None]) for x in (student, teacher)
    )
    return _total(scale[..., None] ** 2 * _numerics.bernoulli_kl(teacher, student), included)


def _inputs(where: Any, *arrays: Array) -> tuple[tuple[Array, ...], Array | None]:
    """Returns arrays ``[..., labels]``, 0 where masked, and the mask of the labels."""
    shape = arrays[0].shape
    where = _checks.mask(where, shape[:-1] if len(shape) > 1 else shape, finer=shape)
    arrays = _numerics.mask_inputs(where, *arrays)
    if len(shape) == 1:
        return tuple(x[:, None] for x in arrays), None if where is None else where[:, None]
    if where is not None and where.ndim < len(shape):
        where = jnp.broadcast_to(where[..., None], shape)
    return arrays, where


def _total(values: Array, where: Array | None) -> Array:
    """Returns the sum over the included labels."""
    return jnp.sum(_numerics.mask_values(values, where), axis=-1)
