"""Response losses without a teacher: given probabilities, smoothed labels, a teacher made of labels.

Every function returns one value per example and works in log-space from logits, so nothing here ever clips a
probability. This file needs only jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["label_smoothing", "soft_cross_entropy", "virtual_teacher_kl"]


def soft_cross_entropy(
    logits: Float[Array, "*batch classes"],
    targets: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy with given probabilities: ``−Σ_c q_c log softmax(z)_c``.

    Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2, as also for mixed labels
    (mixup, CutMix) and annotators who disagree. With one-hot targets it is `cross_entropy`; with a teacher's
    probabilities it is `soft_target_kl` at temperature 1 plus the teacher's entropy, and has the same gradient.

    Args:
      logits: unnormalised scores ``[..., classes]``; ``-inf`` marks a class that cannot occur.
      targets: the probabilities q ``[..., classes]``, not logits. Nothing normalises them: twice as large, they
        weigh the example twice.
      where: True for the examples that count ``[...]``; the others give 0 and no gradient, whatever they hold.

    Returns:
      One value per example ``[...]``, in nats. A class of target 0 adds nothing, also where its logit is ``-inf``; a
      class that the logits exclude and the targets do not makes the value infinite, truly.

    Raises:
      ValueError: shapes differ (nothing is ever broadcast), or dtypes are not floating.

    >>> soft_cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([[0.5, 0.5]])).round(4)
    Array([1.1269], dtype=float32)
    """
    logits, targets = _upcast("logits", logits), _upcast("targets", targets)
    if targets.shape != logits.shape:
        raise ValueError(
            f"targets: expected a probability for each of the logits {list(logits.shape)}, got {list(targets.shape)}. "
            "Integer labels go to cross_entropy."
        )
    (logits, targets), where = _keep(where, logits.shape[:-1], logits, targets)
    return _drop(_cross_entropy(targets, jax.nn.log_softmax(logits)), where)


def label_smoothing(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    smoothing: float | Float[Array, ""] = 0.1,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Label smoothing: cross-entropy with ``q = (1 − ε) onehot(y) + ε / K``.

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7; Müller et al.,
    "When Does Label Smoothing Help?", NeurIPS 2019, section 1. The uniform part covers all K classes, the label's
    among them, as in PyTorch's ``CrossEntropyLoss(label_smoothing=ε)``. Code that gives ε / (K − 1) to the other
    classes alone smooths a little more: its ε is (K − 1) / K of the one here.

    Args:
      logits: unnormalised scores ``[..., classes]``.
      labels: integer class of each example ``[...]``.
      smoothing: ε from 0, which is `cross_entropy`, to 1.
      where: True for the examples that count ``[...]``.

    Returns:
      One value per example ``[...]``, in nats; its minimum is the entropy of q, not 0. A counted label outside
      ``[0, classes)`` gives NaN. A ``-inf`` class has its part of ε and so makes the value infinite.

    Raises:
      ValueError: the logits are not floating point, the labels not integers, shapes do not fit, or ε is outside
        [0, 1].

    >>> label_smoothing(jnp.array([[2.0, 0.0]]), jnp.array([0])).round(4)
    Array([0.2269], dtype=float32)
    """
    if not isinstance(smoothing, jax.core.Tracer) and not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing: expected a number from 0 to 1, got {smoothing}.")
    logits = _upcast("logits", logits)
    labels, known = _labels(labels, logits)
    (logits,), where = _keep(where, logits.shape[:-1], logits)
    classes = logits.shape[-1]
    targets = (1 - smoothing) * jax.nn.one_hot(labels, classes, dtype=logits.dtype) + smoothing / max(classes, 1)
    return _drop(jnp.where(known, _cross_entropy(targets, jax.nn.log_softmax(logits)), jnp.nan), where)


def virtual_teacher_kl(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    correct: float | Float[Array, ""] = 0.99,
    temperature: float | Float[Array, "*#batch"] = 20.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Teacher-free KD (Tf-KD_reg): ``T² KL(p_d ‖ softmax(z / T))``, the teacher made of the label.

    The virtual teacher is right with probability a and spreads 1 − a evenly over the other K − 1 classes; softened, it
    is ``p_d = softmax(log(p) / T)``, as a network with these probabilities would be. Yuan et al., "Revisiting
    Knowledge Distillation via Label Smoothing Regularization", CVPR 2020, section 4. The authors' code softens the
    probabilities themselves, ``softmax(p / T)``, which at T = 20 is nearly uniform, and multiplies by a constant of
    its own in the place of T². The self-teacher variant of the paper (Tf-KD_self) is `soft_target_kl` with the
    outputs of an earlier student for the teacher's.

    Args:
      logits: the student's ``[..., classes]``.
      labels: integer class of each example ``[...]``.
      correct: a, the virtual teacher's probability of the label, above 0 and at most 1.
      temperature: T > 0, a scalar or one for each example ``[...]``.
      where: True for the examples that count ``[...]``.

    Returns:
      One value per example ``[...]``, in nats times T²; 0 for a single class. A counted label outside ``[0, classes)``
      gives NaN.

    Raises:
      ValueError: the logits are not floating point, the labels not integers, shapes do not fit, a is outside (0, 1],
        or T is not positive.

    >>> perfect = jnp.log(jnp.array([[0.005, 0.99, 0.005]]))
    >>> virtual_teacher_kl(jnp.concatenate([perfect, 0 * perfect]), jnp.array([1, 1])).round(2)
    Array([0.  , 3.27], dtype=float32)
    """
    if not isinstance(correct, jax.core.Tracer) and not 0 < correct <= 1:
        raise ValueError(f"correct: expected a probability above 0 and at most 1, got {correct}.")
    logits = _upcast("logits", logits)
    labels, known = _labels(labels, logits)
    (logits,), where = _keep(where, logits.shape[:-1], logits)
    scale, classes = _temperature(temperature, logits), logits.shape[-1]
    log_other = jnp.log1p(-correct) - math.log(classes - 1) if classes > 1 else -math.inf
    teacher = jnp.where(jax.nn.one_hot(labels, classes, dtype=bool), jnp.log(correct), log_other)
    # A label that is no class has no teacher either; it must not leave NaN in the gradients of the others.
    teacher = jnp.where(known[..., None], teacher, 0).astype(logits.dtype)
    log_teacher, log_student = (jax.nn.log_softmax(x / scale[..., None]) for x in (teacher, logits))
    return _drop(jnp.where(known, scale**2 * _kl(log_teacher, log_student), jnp.nan), where)


def _cross_entropy(q: Array, log_p: Array) -> Array:
    """``−Σ q log p`` over the last axis, with 0 log 0 = 0."""
    excluded = log_p == -jnp.inf
    terms = q * jnp.where(excluded, 0, log_p)
    # Where q is positive and p is not, the value is infinite, and q's slope would be; the others keep theirs.
    terms = jnp.where(excluded & (q != 0), jax.lax.stop_gradient(q) * log_p, terms)
    return -jnp.sum(terms, axis=-1)


def _excess(gap: Array) -> Array:
    """``g + e⁻ᵍ − 1`` of |g| < 1 as its series: exact where the terms cancel, and cheaper than an `expm1`."""
    last = 11 if gap.dtype == jnp.float32 else 18
    rest = jnp.zeros_like(gap)
    for k in range(last, 1, -1):
        rest = rest * gap + (-1) ** k / math.factorial(k)
    return rest * gap * gap


@jax.custom_jvp
def _kl(log_p: Array, log_q: Array) -> Array:
    """``Σ p (log p − log q)`` of two distributions over the last axis, with 0 log 0 = 0."""
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    gap = jnp.where(p > 0, log_p - log_q, 0)  # of weight 0 it may be inf - inf
    near = (p > 0) & (jnp.abs(gap) < 1)
    # In all, q - p is 0; class by class, it cancels the roundings of the logarithms, which would hide a small KL.
    return jnp.sum(jnp.where(near, p * _excess(jnp.where(near, gap, 0)), p * gap + (q - p)), axis=-1)


@_kl.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """By hand, so that one array is kept for the backward pass; where the KL is infinite, p has no slope."""
    p, gap = jnp.exp(primals[0]), primals[0] - primals[1]
    slope = p * jnp.where((p > 0) & (gap < jnp.inf), gap, 0)
    return _kl(*primals), jnp.sum(slope * tangents[0] + (jnp.exp(primals[1]) - p) * tangents[1], axis=-1)


def _upcast(name: str, x: Array) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim == 0:
        raise ValueError(f"{name}: expected floating-point [..., classes], got {x.dtype}{list(x.shape)}.")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _labels(labels: Array, logits: Array) -> tuple[Array, Array]:
    """Comparable with any class, and which of them are classes."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels: expected integer classes {list(logits.shape[:-1])} (the logits' {list(logits.shape)} without "
            f"the classes), got {labels.dtype}{list(labels.shape)}. Probabilities go to soft_cross_entropy."
        )
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # an int8 cannot be compared with 1000 classes
    return labels, (labels >= 0) & (labels < logits.shape[-1])


def _temperature(temperature: float | Array, student: Array) -> Array:
    if not isinstance(temperature, jax.core.Tracer):
        numbers = jax.tree.leaves(temperature.tolist() if hasattr(temperature, "tolist") else temperature)
        if not all(number > 0 for number in numbers):  # NaN is not
            raise ValueError(f"temperature: expected positive numbers, got {temperature}.")
    value, shape = jnp.asarray(temperature, student.dtype), student.shape[:-1]
    if value.shape not in ((), shape):
        raise ValueError(f"temperature: expected one number, or {list(shape)} of them, got {list(value.shape)}.")
    return jnp.broadcast_to(value, shape)


def _keep(where: Array | None, shape: tuple[int, ...], *arrays: Array) -> tuple[tuple[Array, ...], Array | None]:
    """Zeros the logits that do not count before anything nonlinear can see them."""
    if where is None:
        return arrays, None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != shape:
        raise ValueError(
            f"where: expected bool{list(shape)}, True for what counts, got {where.dtype}{list(where.shape)}."
        )
    return tuple(jnp.where(where[..., None], x, 0) for x in arrays), where


def _drop(values: Array, where: Array | None) -> Array:
    return values if where is None else jnp.where(where, values, 0)
