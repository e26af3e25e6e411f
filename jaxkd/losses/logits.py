"""Response losses: what the student's logits should be, from labels or from the teacher's logits.

One value per example, in log-space from logits: nothing clips a probability. The file needs only jax and stands alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["cross_entropy", "decoupled_kd", "dist", "generalized_jsd", "logit_mse", "reverse_kl"]
__all__ += ["soft_target_kl", "standardize_logits"]


def cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], *, where: Bool[Array, "*batch"] | None = None
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

    >>> cross_entropy(jnp.array([[2.0, 0.0], [0.0, 0.0]]), jnp.array([0, 1])).round(4)
    Array([0.1269, 0.6931], dtype=float32)
    """
    logits = _upcast("logits", logits)
    labels, known = _labels(labels, logits)
    (logits,), where = _keep(where, logits.shape[:-1], logits)
    # As log_softmax is, but for the classes that are not the label's, which need no array of their own.
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    picked = jnp.take_along_axis(shifted, jnp.where(known, labels, 0)[..., None], axis=-1)[..., 0]
    return _drop(jnp.where(known, jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - picked, jnp.nan), where)


def soft_target_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, "*#batch"] = 4.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Soft targets: ``T² KL(p_t ‖ p_s)`` with ``p = softmax(z / T)``, summed over the classes.

    Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2. T² keeps the gradient's
    size as T changes. The paper's cross-entropy is larger by the teacher's entropy, without a gradient. PyTorch code
    with ``reduction="mean"`` also divides by the number of classes; this is ``"batchmean"``.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` for both adds nothing.
      temperature: T > 0, a scalar or one for each example ``[...]``; 4 is the usual choice on CIFAR-100.
      where: True for the examples that count ``[...]``.

    Returns:
      One value per example ``[...]``, in nats times T². It is infinite, truly, where only the student has ``-inf``.

    Raises:
      ValueError: shapes differ (nothing is ever broadcast), dtypes are not floating, or T is not positive.

    >>> soft_target_kl(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]]), temperature=2.0).round(4)
    Array([1.6313], dtype=float32)
    """
    student, teacher, scale, where = _softened(student, teacher, temperature, where)
    return _drop(scale**2 * _softmax_kl(teacher, student), where)


def reverse_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, "*#batch"] = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Reverse KL: ``T² KL(p_s ‖ p_t)`` with ``p = softmax(z / T)``, which seeks the teacher's modes.

    Gu et al., "MiniLLM", ICLR 2024, equation 1, for one token; the authors sample it from the student's sequences.

    Args:
      student: logits ``[..., classes]``. A class that is ``-inf`` adds nothing.
      teacher: logits ``[..., classes]``.
      temperature: T > 0, a scalar or one for each example ``[...]``.
      where: True for the examples that count ``[...]``.

    Returns:
      One value per example ``[...]``, in nats times T². It is infinite, truly, where only the teacher has ``-inf``.

    Raises:
      ValueError: shapes differ, dtypes are not floating, or T is not positive.

    >>> reverse_kl(jnp.array([[0.0, 3.0]]), jnp.array([[1.0, 0.0]]), temperature=2.0).round(4)
    Array([1.6313], dtype=float32)
    """
    student, teacher, scale, where = _softened(student, teacher, temperature, where)
    return _drop(scale**2 * _softmax_kl(student, teacher), where)


def generalized_jsd(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    beta: float | Float[Array, ""] = 0.5,
    temperature: float | Float[Array, "*#batch"] = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Generalised Jensen–Shannon divergence: ``β KL(p_t ‖ m) + (1−β) KL(p_s ‖ m)`` with ``m = β p_t + (1−β) p_s``.

    Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024 (GKD), equation 1; as there, without T².
    By convention β = 0 is ``KL(p_t ‖ p_s)`` and β = 1 is ``KL(p_s ‖ p_t)``: the limits of JSD/β and of JSD/(1−β),
    for JSD itself vanishes towards both ends. Some code has β and 1−β exchanged.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` for both adds nothing.
      beta: the teacher's share of the mixture, a number from 0 to 1.
      temperature: T > 0, a scalar or one for each example ``[...]``.
      where: True for the examples that count ``[...]``.

    Returns:
      One value per example ``[...]``, in nats. For 0 < β < 1 it is at most the entropy of (β, 1−β), hence finite.

    Raises:
      ValueError: shapes differ, dtypes are not floating, β is outside [0, 1], or T is not positive.

    >>> generalized_jsd(jnp.array([[40.0, 0.0]]), jnp.array([[0.0, 40.0]]))  # log 2, where KL(p_t ‖ p_s) is 40
    Array([0.6931], dtype=float32)
    """
    traced = isinstance(beta, jax.core.Tracer)
    if not traced and not 0 <= beta <= 1:
        raise ValueError(f"beta: expected a number from 0 to 1, got {beta}.")
    student, teacher, _, where = _softened(student, teacher, temperature, where)
    log_student, log_teacher = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    if not traced and beta in (0, 1):
        return _drop(_kl(log_student, log_teacher) if beta else _kl(log_teacher, log_student), where)
    share = beta
    if traced:  # the limits are chosen below; what is outside of them is heard as NaN
        share = jnp.where((beta == 0) | (beta == 1), 0.5, jnp.where((beta > 0) & (beta < 1), beta, jnp.nan))
    # A class that both exclude has no mixture, and logaddexp no slope there.
    possible = (log_teacher > -jnp.inf) | (log_student > -jnp.inf)
    parts = (jnp.where(possible, x, 0) for x in (log_teacher + jnp.log(share), log_student + jnp.log1p(-share)))
    log_mixture = jnp.where(possible, jnp.logaddexp(*parts), -jnp.inf)
    values = share * _kl(log_teacher, log_mixture) + (1 - share) * _kl(log_student, log_mixture)
    if traced:
        values = jnp.where(beta == 0, _kl(log_teacher, log_student), values)
        values = jnp.where(beta == 1, _kl(log_student, log_teacher), values)
    return _drop(values, where)


def decoupled_kd(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float | Float[Array, "*#batch"] = 4.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Decoupled KD: ``α T² KL(b_t ‖ b_s) + β T² KL(q_t ‖ q_s)``.

    ``b`` is the distribution over (target, rest), ``q`` that over the non-target classes: 0 where there is but one.
    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7. α = 1, β = 1 − p_t[target] is the usual KL.
    The authors' code takes the logarithm of the summed rest, which can be 0; here it is a log-sum-exp.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` for both adds nothing.
      labels: the integer target of each example ``[...]``.
      alpha: weight of the target's term.
      beta: weight of the non-target classes' term.
      temperature: T > 0, a scalar or one for each example ``[...]``.
      where: True for the examples that count ``[...]``.

    Returns:
      One value per example ``[...]``, in nats times T²; NaN for a counted label outside ``[0, classes)``.

    Raises:
      ValueError: shapes differ, logits are not floating, labels not integers, or T is not positive.

    >>> decoupled_kd(jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[3.0, 0.0, 1.0]]), jnp.array([0]), temperature=1.0)
    Array([3.7785], dtype=float32)
    """
    student, teacher, scale, where = _softened(student, teacher, temperature, where)
    labels, known = _labels(labels, student)
    target = jax.nn.one_hot(labels, student.shape[-1], dtype=bool)

    def decoupled(logits: Array) -> tuple[Array, Array]:
        log_probs = jax.nn.log_softmax(logits)
        some = jnp.any(~target & (logits > -jnp.inf), axis=-1, keepdims=True)  # otherwise there is no rest
        # The logits too: next to a target far above them, their differences are lost in the rounding of log_probs.
        others, rest = (jnp.where(some, jnp.where(target, -jnp.inf, x), 0) for x in (logits, log_probs))
        own = jnp.sum(jnp.where(target, log_probs, 0), axis=-1, keepdims=True)
        rest = jnp.where(some, jax.nn.logsumexp(rest, axis=-1, keepdims=True), -jnp.inf)
        return jnp.concatenate([own, rest], axis=-1), jnp.where(some, jax.nn.log_softmax(others), -jnp.inf)

    (binary_s, others_s), (binary_t, others_t) = decoupled(student), decoupled(teacher)
    others_s = jnp.where(jnp.any(others_t > -jnp.inf, axis=-1, keepdims=True), others_s, -jnp.inf)
    value = scale**2 * (alpha * _kl(binary_t, binary_s) + beta * _kl(others_t, others_s))
    return _drop(jnp.where(known, value, jnp.nan), where)


def dist(
    student: Float[Array, "batch classes"],
    teacher: Float[Array, "batch classes"],
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float | Float[Array, "#batch"] = 1.0,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """DIST: ``T² [β (1 − ρ(row)) + γ mean_c (1 − ρ(column c))]``, ρ the correlation of p_s and p_t.

    Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, section 4, with T² and the 1e-8 beside
    the norms' product as in their code. Rows are examples, columns are classes over the batch.

    Args:
      student: logits ``[batch, classes]``.
      teacher: logits ``[batch, classes]``.
      beta: weight of the relation between classes (rows).
      gamma: weight of the relation within a class (columns).
      temperature: T > 0, a scalar or one for each example ``[batch]``.
      where: True for the examples that count ``[batch]``; the others are in no column either.
      axis_name: a mapped axis over which the batch is split.

    Returns:
      One value per example ``[batch]``, with the columns' term in each. What is constant has ρ = 0 and no gradient.

    Raises:
      ValueError: shapes are not one ``[batch, classes]``, dtypes are not floating, or T is not positive.

    >>> dist(jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), jnp.array([[3.0, 0.0, 1.0], [0.0, 3.0, 1.0]])).round(4)
    Array([0.392 , 0.7645], dtype=float32)
    """
    student, teacher, scale, where = _softened(student, teacher, temperature, where)
    if student.ndim != 2:
        raise ValueError(f"student: expected logits [batch, classes], got {student.dtype}{list(student.shape)}.")
    p, q = map(jax.nn.softmax, (student, teacher))
    counted = jnp.ones(p.shape, bool) if where is None else jnp.broadcast_to(where[:, None], p.shape)
    rows = 1 - _correlation(p, q, counted, axis=1)
    columns = jnp.mean(1 - _correlation(p, q, counted, axis=0, axis_name=axis_name))
    return _drop(scale**2 * (beta * rows + gamma * columns), where)


def logit_mse(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Logit regression: ``½ ‖z_s − z_t‖²``, summed over the classes.

    Ba & Caruana, "Do Deep Nets Really Need to be Deep?", 2014, equation 2; `soft_target_kl`'s limit for high T.

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
    student, teacher, _, where = _softened(student, teacher, 1.0, where)
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
    # Any shift cancels; this one makes a constant row exactly 0 rather than a rounding over 1e-7.
    shift = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    values = jnp.where(finite, logits - jnp.where(shift > -jnp.inf, shift, 0), 0)
    count = jnp.sum(finite, axis=-1, keepdims=True)
    centred = jnp.where(finite, values - jnp.sum(values, axis=-1, keepdims=True) / jnp.maximum(count, 1), 0)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / jnp.maximum(count - 1, 1)
    spread = jnp.sqrt(jnp.where(variance > 0, variance, 1))  # a constant row: sqrt has no slope at 0
    return jnp.where(finite, centred / (jnp.where(variance > 0, spread, 0) + 1e-7), -jnp.inf)


def _upcast(name: str, x: Array) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim == 0:
        raise ValueError(f"{name}: expected floating-point logits [..., classes], got {x.dtype}{list(x.shape)}.")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _softened(student: Array, teacher: Array, temperature: float | Array, where: Array | None) -> tuple[Any, ...]:
    """Both checked, masked and divided by the temperature; that, one for each example; and the mask."""
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)}, got {list(teacher.shape)}. Nothing is "
            "broadcast; reshape one of them, or select the classes that both know."
        )
    (student, teacher), where = _keep(where, student.shape[:-1], student, teacher)
    scale = _temperature(temperature, student)

    def over(x: Array) -> Array:
        if not isinstance(temperature, jax.core.Tracer):
            return x / scale[..., None]
        # Infinity over a learned T has no slope.
        fixed = jax.lax.stop_gradient(scale)[..., None]
        return jnp.where(x == -jnp.inf, x / fixed, jnp.maximum(x, jnp.finfo(x.dtype).min) / scale[..., None])

    return over(student), over(teacher), scale, where


def _temperature(temperature: float | Array, student: Array) -> Array:
    if not isinstance(temperature, jax.core.Tracer):
        numbers = jax.tree.leaves(temperature.tolist() if hasattr(temperature, "tolist") else temperature)
        if not all(number > 0 for number in numbers):  # NaN is not
            raise ValueError(f"temperature: expected positive numbers, got {temperature}.")
    value, shape = jnp.asarray(temperature, student.dtype), student.shape[:-1]
    if value.shape not in ((), shape):
        raise ValueError(f"temperature: expected one number, or {list(shape)} of them, got {list(value.shape)}.")
    return jnp.broadcast_to(value, shape)


def _labels(labels: Array, logits: Array) -> tuple[Array, Array]:
    """Comparable with any class, and which of them are classes."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != logits.shape[:-1]:
        expected = f"{list(logits.shape[:-1])} for logits {list(logits.shape)}"
        came = f"{labels.dtype}{list(labels.shape)}. For probabilities: soft_cross_entropy"
        raise ValueError(f"labels: expected integer classes {expected}, got {came}.")
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # an int8 cannot be compared with 1000 classes
    return labels, (labels >= 0) & (labels < logits.shape[-1])


def _keep(where: Array | None, shape: tuple[int, ...], *arrays: Array) -> tuple[tuple[Array, ...], Array | None]:
    """Zeros the logits that do not count before anything nonlinear can see them."""
    if where is None:
        return arrays, None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != shape:
        raise ValueError(f"where: expected bool{list(shape)} (what counts), got {where.dtype}{list(where.shape)}.")
    return tuple(jnp.where(where[..., None], x, 0) for x in arrays), where


def _drop(values: Array, where: Array | None) -> Array:
    return values if where is None else jnp.where(where, values, 0)


def _excess(gap: Array) -> Array:
    """``g + e⁻ᵍ − 1`` of |g| < 1 as its series: exact where the terms cancel, and cheaper than an `expm1`."""
    last = 11 if gap.dtype == jnp.float32 else 18
    rest = jnp.zeros_like(gap)
    for k in range(last, 1, -1):
        rest = rest * gap + (-1) ** k / math.factorial(k)
    return rest * gap * gap


def _divergence(log_p: Array, log_q: Array, p: Array, q: Array) -> Array:
    """``Σ p (log p − log q)`` of two distributions over the last axis, with 0 log 0 = 0."""
    gap = jnp.where(p > 0, log_p - log_q, 0)  # of weight 0 it may be inf - inf
    near = (p > 0) & (jnp.abs(gap) < 1)
    # In all, q - p is 0; class by class, it cancels the roundings of the logarithms, which would hide a small KL.
    return jnp.sum(jnp.where(near, p * _excess(jnp.where(near, gap, 0)), p * gap + (q - p)), axis=-1)


@jax.custom_jvp
def _kl(log_p: Array, log_q: Array) -> Array:
    """Of distributions that are given by their logarithms."""
    return _divergence(log_p, log_q, jnp.exp(log_p), jnp.exp(log_q))


@_kl.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """By hand: it keeps one array for the backward pass. Where the KL is infinite, p has no slope."""
    p, gap = jnp.exp(primals[0]), primals[0] - primals[1]
    slope = p * jnp.where((p > 0) & (gap < jnp.inf), gap, 0)
    return _kl(*primals), jnp.sum(slope * tangents[0] + (jnp.exp(primals[1]) - p) * tangents[1], axis=-1)


def _correlation(a: Array, b: Array, counted: Array, *, axis: int, axis_name: str | None = None) -> Array:
    """Pearson's, over what counts along the axis."""

    def total(x: Array) -> Array:
        x = jnp.sum(x, axis=axis, keepdims=True, dtype=a.dtype)
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    def centred(x: Array) -> Array:
        # Any shift cancels; this one makes a constant exactly 0, and leaves no rounding to correlate.
        shift = jax.lax.stop_gradient(jnp.max(jnp.where(counted, x, 0), axis=axis, keepdims=True, initial=0))
        shift = shift if axis_name is None else jax.lax.pmax(shift, axis_name)
        x = jnp.where(counted, x - shift, 0)
        return jnp.where(counted, x - total(x) / jnp.maximum(total(counted), 1), 0)

    a, b = centred(a), centred(b)
    squares = total(a**2), total(b**2)
    varied = (squares[0] > 0) & (squares[1] > 0)
    norms = [jnp.sqrt(jnp.where(varied, square, 1)) for square in squares]
    return jnp.squeeze(jnp.where(varied, total(a * b) / (norms[0] * norms[1] + 1e-8), 0), axis)


@jax.custom_jvp
def _softmax_kl(x: Array, y: Array) -> Array:
    """Of distributions that are given by their logits: fewer exponentials, and no way back through a log_softmax."""
    return _divergence(jax.nn.log_softmax(x), jax.nn.log_softmax(y), jax.nn.softmax(x), jax.nn.softmax(y))


@_softmax_kl.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    p, q = map(jax.nn.softmax, primals)
    gap = jax.nn.log_softmax(primals[0]) - jax.nn.log_softmax(primals[1])
    slope = p * jnp.where((p > 0) & (gap < jnp.inf), gap, 0)
    slope = slope - p * jnp.sum(slope, axis=-1, keepdims=True)
    return _softmax_kl(*primals), jnp.sum(slope * tangents[0] + (q - p) * tangents[1], axis=-1)
