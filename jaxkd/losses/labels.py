"""Losses in log-space of labels or given probabilities, without a teacher network."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from . import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["cross_entropy", "soft_cross_entropy", "label_smoothing", "virtual_teacher_kl"]


def cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], *, where: Bool[Array, "*batch"] | None = None
) -> Float[Array, "*batch"]:
    """Cross-entropy with integer labels.

    Also known as: CE, hard-label loss, softmax loss.

    ``−log softmax(z)[y]``.

    Args:
      logits: unnormalized scores ``[..., classes]``; ``-inf`` marks a class that cannot occur.
      labels: integer class of each example ``[...]``.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, in nats, float32 or better. Label values are unknown at trace time, so an
      included label outside ``[0, classes)`` yields NaN.

    Raises:
      ValueError: the logits are not floating point, the labels not integers, or the shapes do not fit.

    >>> cross_entropy(jnp.array([[2.0, 0.0], [0.0, 0.0]]), jnp.array([0, 1])).round(4)
    Array([0.1269, 0.6931], dtype=float32)
    """
    logits = _checks.class_logits("logits", logits)
    labels, known = _checks.labels(labels, logits)
    where = _checks.mask(where, logits.shape[:-1])
    (logits,) = _numerics.mask_inputs(where, logits)
    # log_softmax at the label alone, without an array of the other classes' values.
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    picked = jnp.take_along_axis(shifted, jnp.where(known, labels, 0)[..., None], axis=-1)[..., 0]
    return _numerics.mask_values(jnp.where(known, jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - picked, jnp.nan), where)


def soft_cross_entropy(
    logits: Float[Array, "*batch classes"],
    targets: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy with given probabilities.

    Also known as: soft-label cross-entropy.

    ``−Σ_c q_c log softmax(z)_c``. Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, section
    2; also for mixed labels (mixup, CutMix) and annotators who disagree. With one-hot targets it is `cross_entropy`;
    with a teacher's probabilities it is `soft_target_kl` at temperature 1 plus the teacher's entropy, with the same
    gradient.

    Args:
      logits: unnormalized scores ``[..., classes]``; ``-inf`` marks a class that cannot occur.
      targets: the probabilities q ``[..., classes]``, not logits. They are not normalized: twice as large, they weight
        the example twice.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, in nats. A class of target 0 adds nothing, even if its logit is ``-inf``; a
      positive target of an excluded class makes the value infinite.

    Raises:
      ValueError: shapes differ (nothing is broadcast), or a dtype is not floating point.

    >>> soft_cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([[0.5, 0.5]])).round(4)
    Array([1.1269], dtype=float32)
    """
    logits = _checks.logits("logits", logits)
    targets = _checks.targets("targets", targets, logits)
    _checks.several("logits", logits, logits.shape[-1])
    where = _checks.mask(where, logits.shape[:-1])
    logits, targets = _numerics.mask_inputs(where, logits, targets)
    return _numerics.mask_values(_cross_entropy(targets, jax.nn.log_softmax(logits)), where)


def label_smoothing(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    smoothing: float | Float[Array, ""] = 0.1,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy with a mixture of the label and the uniform distribution.

    Also known as: LS, LSR (label-smoothing regularization).

    Cross-entropy with ``q = (1 − ε) onehot(y) + ε / K``. Szegedy et al., "Rethinking the Inception Architecture for
    Computer Vision", CVPR 2016, section 7; Müller et al., "When Does Label Smoothing Help?", NeurIPS 2019, section 1.
    The uniform part includes the label's class, as in PyTorch's ``CrossEntropyLoss(label_smoothing=ε)``. Code that
    gives ε / (K − 1) to the other classes alone smooths more: its ε is (K − 1) / K of the one here.

    Args:
      logits: unnormalized scores ``[..., classes]``.
      labels: integer class of each example ``[...]``.
      smoothing: ε from 0, which is `cross_entropy`, to 1.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, in nats; its minimum is the entropy of q, not 0. An included label outside ``[0,
      classes)`` gives NaN. A ``-inf`` class has a share of ε, so that the value is infinite.

    Raises:
      ValueError: the logits are not floating point, the labels not integers, shapes do not fit, or ε is outside [0, 1].

    >>> label_smoothing(jnp.array([[2.0, 0.0]]), jnp.array([0])).round(4)
    Array([0.2269], dtype=float32)
    """
    _checks.fraction("smoothing", smoothing)
    logits = _checks.class_logits("logits", logits)
    labels, known = _checks.labels(labels, logits)
    where = _checks.mask(where, logits.shape[:-1])
    (logits,) = _numerics.mask_inputs(where, logits)
    classes = logits.shape[-1]
    targets = (1 - smoothing) * jax.nn.one_hot(labels, classes, dtype=logits.dtype) + smoothing / classes
    return _numerics.mask_values(jnp.where(known, _cross_entropy(targets, jax.nn.log_softmax(logits)), jnp.nan), where)


def virtual_teacher_kl(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    correct: float | Float[Array, ""] = 0.99,
    temperature: float | Float[Array, "*#batch"] = 20.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL divergence to a virtual teacher that is made of the label.

    Also known as: Tf-KD (teacher-free knowledge distillation), Tf-KD_reg.

    ``T² KL(p_d ‖ softmax(z / T))``. The virtual teacher gives the label probability a and spreads 1 − a evenly over the
    other K − 1 classes; softened, it is ``p_d = softmax(log(p) / T)``, as for a network with these probabilities. Yuan
    et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020, section 4. The authors'
    code softens the probabilities themselves, ``softmax(p / T)``, which is nearly uniform at T = 20, leaves the student
    unsoftened, divides by the number of classes too, and multiplies by a constant of its own in place of T². The
    self-teacher variant of the paper (Tf-KD_self) is `soft_target_kl` with the outputs of an earlier student as the
    teacher's.

    Args:
      logits: the student's logits ``[..., classes]``.
      labels: integer class of each example ``[...]``.
      correct: a, the virtual teacher's probability of the label, above 0 and at most 1.
      temperature: T > 0, a scalar or one for each example ``[...]``.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, in nats times T². An included label outside ``[0, classes)`` gives NaN.

    Raises:
      ValueError: the logits are not floating point, the labels not integers, shapes do not fit, a is outside (0, 1], or
        T is not positive.

    >>> perfect = jnp.log(jnp.array([[0.005, 0.99, 0.005]]))
    >>> virtual_teacher_kl(jnp.concatenate([perfect, 0 * perfect]), jnp.array([1, 1])).round(2)
    Array([0.  , 3.27], dtype=float32)
    """
    _checks.probability("correct", correct)
    logits = _checks.class_logits("logits", logits)
    labels, known = _checks.labels(labels, logits)
    where = _checks.mask(where, logits.shape[:-1])
    (logits,) = _numerics.mask_inputs(where, logits)
    scale, classes = _checks.temperature(temperature, logits.dtype, logits.shape[:-1]), logits.shape[-1]
    log_other = jnp.log1p(-correct) - math.log(classes - 1)
    teacher = jnp.where(jax.nn.one_hot(labels, classes, dtype=bool), jnp.log(correct), log_other)
    # An invalid label has no teacher. Its NaN is set below; one here would reach the gradients of the other examples.
    teacher = jnp.where(known[..., None], teacher, 0).astype(logits.dtype)
    log_teacher, log_student = (jax.nn.log_softmax(_numerics.soften(x, scale)) for x in (teacher, logits))
    return _numerics.mask_values(jnp.where(known, scale**2 * _numerics.kl(log_teacher, log_student), jnp.nan), where)


def _cross_entropy(q: Array, log_p: Array) -> Array:
    """Returns ``−Σ q log p`` over the last axis, with 0 log 0 = 0."""
    excluded = log_p == -jnp.inf
    terms = q * jnp.where(excluded, 0, log_p)
    # An excluded class with a positive target makes the value infinite; q's derivative there would be infinite too.
    terms = jnp.where(excluded & (q != 0), jax.lax.stop_gradient(q) * log_p, terms)
    return -jnp.sum(terms, axis=-1)
