"""Response losses: what the student's logits should be, from labels or from the teacher's logits.

Every function returns one value per example and works in log-space from logits, so nothing here ever clips a
probability. This file needs only jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["cross_entropy", "logit_mse", "soft_target_kl", "standardize_logits"]


def cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy with integer labels: ``-log softmax(z)[y]``.

    Args:
      logits: unnormalised scores ``[..., classes]``; ``-inf`` marks a class that cannot occur.
      labels: integer class of each example ``[...]``.
      where: True for the examples that count ``[...]``; the others give 0 and no gradient, whatever they hold.

    Returns:
      One value per example ``[...]``, in nats, float32 or better. A counted label outside ``[0, classes)`` gives
      NaN rather than another class's loss: values cannot be checked while tracing, so this is how it is heard.

    Raises:
      ValueError: the logits are not floating point, the labels not integers, or the shapes do not fit.

    >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
    >>> [round(float(x), 4) for x in cross_entropy(logits, jnp.array([0, 1]))]
    [0.1269, 0.6931]
    """
    logits, labels = _upcast("logits", logits), jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels: expected integer classes, got {labels.dtype}{list(labels.shape)}. For probabilities use "
            "soft_target_kl with their logarithms as teacher logits (the two differ by a constant)."
        )
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels: expected shape {list(logits.shape[:-1])} (the logits' {list(logits.shape)} without the "
            f"classes), got {list(labels.shape)}."
        )
    (logits,), where = _keep(where, logits.shape[:-1], logits)
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # an int8 cannot be compared with 1000 classes
    classes = logits.shape[-1]
    known = (labels >= 0) & (labels < classes)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.where(known, labels, 0)[..., None], axis=-1)
    return _drop(jnp.where(known, -picked[..., 0], jnp.nan), where)


def soft_target_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, "*#batch"] = 4.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Soft targets: ``T² KL(p_t ‖ p_s)`` with ``p = softmax(z / T)``, summed over the classes.

    Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2. The factor T² keeps the
    gradient's size as the temperature changes. The paper writes the cross-entropy; the KL differs from it by the
    teacher's entropy, which has no gradient, and is 0 when the student agrees. PyTorch code that averages over
    ``batch × classes`` (``reduction="mean"``) is smaller by the number of classes; this is ``"batchmean"``.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` for both adds nothing.
      temperature: T > 0, a scalar or one for each example ``[...]``; 4 is the usual choice on CIFAR-100.
      where: True for the examples that count ``[...]``.

    Returns:
      One value per example ``[...]``, in nats times T². It is infinite, truly, where the student excludes
      (``-inf``) a class that the teacher does not; the student's gradient stays finite there.

    Raises:
      ValueError: shapes differ (nothing is ever broadcast), dtypes are not floating, or T is not positive.

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]])
    >>> soft_target_kl(student, teacher, temperature=2.0).round(4)
    Array([1.6313], dtype=float32)
    """
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    _same_shape(student, teacher)
    (student, teacher), where = _keep(where, student.shape[:-1], student, teacher)
    scale = _temperature(temperature, student)
    log_student = jax.nn.log_softmax(student / scale[..., None])
    log_teacher = jax.nn.log_softmax(teacher / scale[..., None])
    target = jnp.exp(log_teacher)
    # Where the target is 0 the difference may be inf - inf; its weight is 0, so it has to go before the product.
    difference = jnp.where(target > 0, log_teacher - log_student, 0)
    return _drop(scale**2 * jnp.sum(target * difference, axis=-1), where)


def logit_mse(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Logit regression: ``½ ‖z_s − z_t‖²``, summed over the classes.

    Ba & Caruana, "Do Deep Nets Really Need to be Deep?", 2014, equation 2. It is the limit of `soft_target_kl` times
    the number of classes for high temperatures and zero-mean logits.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` for both adds nothing.
      where: True for the examples that count ``[...]``.

    Returns:
      One value per example ``[...]``, in squared logits.

    Raises:
      ValueError: shapes differ, or dtypes are not floating.

    >>> logit_mse(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]]))
    Array([2.5], dtype=float32)
    """
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    _same_shape(student, teacher)
    (student, teacher), where = _keep(where, student.shape[:-1], student, teacher)
    # Equal logits contribute 0 anyway; selecting them first keeps -inf - -inf out of the graph.
    difference = jnp.where(student == teacher, 0, student - teacher)
    return _drop(jnp.sum(difference**2, axis=-1) / 2, where)


def standardize_logits(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """Logit standardisation: ``(z − mean(z)) / (std(z) + 1e-7)`` over the classes, before a soft-target loss.

    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, equation 9. The standard deviation is
    the sample's (``ddof=1``), as in the authors' PyTorch; `jnp.std` with its default would differ.

    Args:
      logits: ``[..., classes]``; ``-inf`` classes take no part in the statistics and stay ``-inf``.

    Returns:
      Standardised logits ``[..., classes]``. Constant rows (and a single class) give 0.

    Raises:
      ValueError: the logits are not floating point.

    >>> standardize_logits(jnp.array([[0.0, 1.0, 2.0]])).round(4)
    Array([[-1.,  0.,  1.]], dtype=float32)
    """
    logits = _upcast("logits", logits)
    finite = logits > -jnp.inf
    # Any shift cancels; this one makes a constant row exactly 0, where its mean's rounding would be divided by 1e-7.
    shift = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    values = jnp.where(finite, logits - jnp.where(shift > -jnp.inf, shift, 0), 0)
    count = jnp.sum(finite, axis=-1, keepdims=True)
    centred = jnp.where(finite, values - jnp.sum(values, axis=-1, keepdims=True) / jnp.maximum(count, 1), 0)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / jnp.maximum(count - 1, 1)
    spread = jnp.sqrt(jnp.where(variance > 0, variance, 1))  # a constant row: sqrt has no slope at 0
    return jnp.where(finite, centred / (jnp.where(variance > 0, spread, 0) + 1e-7), -jnp.inf)


def _upcast(name: str, logits: Array) -> Array:
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating) or logits.ndim == 0:
        raise ValueError(
            f"{name}: expected floating-point logits [..., classes], got {logits.dtype}{list(logits.shape)}."
        )
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _same_shape(student: Array, teacher: Array) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)}, got {list(teacher.shape)}. Nothing is "
            "broadcast; reshape one of them, or select the classes that both know."
        )


def _temperature(temperature: float | Array, student: Array) -> Array:
    if not isinstance(temperature, jax.core.Tracer):
        numbers = jax.tree.leaves(temperature.tolist() if hasattr(temperature, "tolist") else temperature)
        if not all(number > 0 for number in numbers):  # NaN is not
            raise ValueError(f"temperature: expected positive numbers, got {temperature}.")
    value = jnp.asarray(temperature, student.dtype)
    if value.shape not in ((), student.shape[:-1]):
        raise ValueError(
            f"temperature: expected a scalar or one for each example {list(student.shape[:-1])}, got "
            f"{list(value.shape)}."
        )
    return jnp.broadcast_to(value, student.shape[:-1])


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
