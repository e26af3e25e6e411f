"""Losses of logits other than a KL of two softmaxes, and logit standardization."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from . import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["decoupled_kd", "dist", "logit_mse", "standardize_logits"]


def decoupled_kd(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"] | Float[Array, "*batch classes"],
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float | Float[Array, "*#batch"] = 4.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL of target against rest, and KL among the rest, with separate weights.

    Also known as: DKD (decoupled knowledge distillation), TCKD and NCKD (its two terms).

    ``α T² KL(b_t ‖ b_s) + β T² KL(q_t ‖ q_s)`` with b the distribution over (target, rest) and q that over the
    non-target classes; the second term is 0 if there is only one such class. Zhao et al., "Decoupled Knowledge
    Distillation", CVPR 2022, equation 7. With α = 1 and β = 1 − p_t[target] it is the usual KL. The authors' code takes
    the logarithm of the summed rest, which can be 0; this takes a log-sum-exp.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` for both adds nothing.
      labels: integer class of each example, its target ``[...]``; or weights of all classes ``[..., classes]``, as from
        mixup, for ``Σ_c w_c DKD(c)``, the value for each class as the target times its weight. That takes as many times
        longer as there are classes: for two labels, λ times a first and 1 − λ times a second call is cheaper.
      alpha: weight of the term of target against rest, at least 0.
      beta: weight of the non-target classes' term, at least 0.
      temperature: T > 0, a scalar or one for each example ``[...]``.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, in nats times T²; NaN for an included label outside ``[0, classes)``.

    Raises:
      ValueError: shapes differ, there is one class (`binary_kl`), the logits are not floating point, labels neither
        integers nor weights, T is not positive, or a weight is negative.

    >>> decoupled_kd(jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[3.0, 0.0, 1.0]]), jnp.array([0]), temperature=1.0)
    Array([3.7785], dtype=float32)
    """
    for name, weight in (("alpha", alpha), ("beta", beta)):
        _checks.not_negative(name, weight)
    student, teacher, where = _numerics.pair(student, teacher, where)
    _checks.several("student", student, student.shape[-1])
    scale, classes = _checks.temperature(temperature, student.dtype, student.shape[:-1]), student.shape[-1]

    def value(target: Array) -> Array:
        target = jnp.broadcast_to(target, student.shape)
        (gap_s, others_s, some_s), (gap_t, others_t, some_t) = (
            _decoupled(x, target, scale) for x in (student, teacher)
        )
        # A teacher without a rest has nothing to compare with; a student alone without one has no finite value.
        among = jnp.where(some_s, _numerics.softmax_kl(others_t, others_s), jnp.inf)
        among = jnp.where(some_t, among, 0)
        return scale**2 * (alpha * _numerics.bernoulli_kl(gap_t, gap_s) + beta * among)

    if not jnp.issubdtype(jnp.asarray(labels).dtype, jnp.floating):
        labels, known = _checks.labels(labels, student)
        return _numerics.mask_values(
            jnp.where(known, value(jax.nn.one_hot(labels, classes, dtype=bool)), jnp.nan), where
        )
    (targets,) = _numerics.mask_inputs(where, _checks.targets("labels", labels, student))
    targets = jnp.moveaxis(targets, -1, 0)
    # One class at a time, computed again for the backward pass: no array of all pairs of classes exists.
    values = jax.lax.map(jax.checkpoint(lambda label: value(jnp.arange(classes) == label)), jnp.arange(classes))
    infinite = jnp.where(jnp.any((targets != 0) & (values == jnp.inf), axis=0), jnp.inf, 0)
    mixed = jnp.sum(targets * jnp.where((targets != 0) & (values < jnp.inf), values, 0), axis=0)
    return _numerics.mask_values(mixed + infinite, where)


def _decoupled(logits: Array, target: Array, scale: Array) -> tuple[Array, Array, Array]:
    """Returns the logit of target against rest, and the softened scores of the rest.

    The third result is False where no class but the target is possible.
    """
    some = jnp.any(~target & (logits > -jnp.inf), axis=-1)
    own = jnp.sum(jnp.where(target, logits, 0), axis=-1)
    # The rest is shifted by its own maximum: below a far larger target, rounding would hide its gaps.
    rest = jnp.where(some[..., None], jnp.where(target, -jnp.inf, logits), 0)
    top = jax.lax.stop_gradient(jnp.max(rest, axis=-1))
    others, finite = _numerics.soften(rest, scale), own > -jnp.inf
    limit = -_numerics.lowest(logits.dtype)
    gap = jnp.clip((jnp.where(finite, own, 0) - top) / scale, -limit, limit)
    gap = gap - jnp.squeeze(_numerics.log_normalizer(others), axis=-1)
    return jnp.where(some, jnp.where(finite, gap, -jnp.inf), jnp.inf), others, some


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
    """One minus the Pearson correlation of probabilities, by rows and by columns.

    Also known as: DIST (distillation from a stronger teacher).

    ``T² [β (1 − ρ(row)) + γ mean_c (1 − ρ(column c))]`` with ρ the correlation of p_s and p_t, rows the examples and
    columns the classes over the batch. Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022,
    section 4, with the factor T² and the 1e-8 beside the product of the norms that are in the authors' code. It
    takes no labels: images mixed by mixup or CutMix, which both networks see, need nothing else.

    Args:
      student: logits ``[batch, classes]``.
      teacher: logits ``[batch, classes]``.
      beta: weight of the relation between classes (rows).
      gamma: weight of the relation within a class (columns).
      temperature: T > 0, a scalar or one for each example ``[batch]``.
      where: mask, True for the examples to include ``[batch]``; masked examples are in no column.
      axis_name: a mapped axis over which the batch is split.

    Returns:
      One value per example ``[batch]``, each with the columns' term. A constant row or column has ρ = 0 and no
      gradient.

    Raises:
      ValueError: shapes are not the same ``[batch, classes]``, a dtype is not floating point, or T is not positive.

    >>> dist(jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), jnp.array([[3.0, 0.0, 1.0], [0.0, 3.0, 1.0]])).round(4)
    Array([0.392 , 0.7645], dtype=float32)
    """
    for name, weight in (("beta", beta), ("gamma", gamma)):
        _checks.not_negative(name, weight)
    student, teacher, scale, where = _numerics.softened(student, teacher, temperature, where)
    if student.ndim != 2:
        raise ValueError(f"student: expected logits [batch, classes], got {student.dtype}{list(student.shape)}.")
    p, q = map(jax.nn.softmax, (student, teacher))
    included = jnp.ones(p.shape, bool) if where is None else jnp.broadcast_to(where[:, None], p.shape)
    rows = 1 - _correlation(p, q, included, axis=1)
    columns = jnp.mean(1 - _correlation(p, q, included, axis=0, axis_name=axis_name))
    return _numerics.mask_values(scale**2 * (beta * rows + gamma * columns), where)


def logit_mse(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Half the squared distance between logits.

    Also known as: logit matching, logit regression.

    ``½ ‖z_s − z_t‖²``, summed over the classes. Ba & Caruana, "Do Deep Nets Really Need to be Deep?", 2014, equation 2.
    It is the limit of `soft_target_kl` for high temperatures and centered logits.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` for both adds nothing.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, in squared logits. A class that is ``-inf`` for one network alone makes it
      infinite, with the gradient of the other classes.

    Raises:
      ValueError: shapes differ, or a dtype is not floating point.

    >>> logit_mse(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]]))
    Array([2.5], dtype=float32)
    """
    student, teacher, where = _numerics.pair(student, teacher, where)
    seen_s, seen_t = student != -jnp.inf, teacher != -jnp.inf
    difference = jnp.where(seen_s & seen_t, student - teacher, 0)
    # A class that one network excludes adds an infinite constant, since its derivative would be infinite too.
    infinite = jnp.where(jnp.any(seen_s != seen_t, axis=-1), jnp.inf, 0)
    return _numerics.mask_values(jnp.sum(difference**2, axis=-1) / 2 + infinite, where)


def standardize_logits(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """Returns logits with mean 0 and standard deviation 1 over the classes.

    Also known as: logit standardization, Z-score.

    ``(z − mean(z)) / (std(z) + 1e-7)``, applied to student and teacher before a soft-target loss. Sun et al., "Logit
    Standardization in Knowledge Distillation", CVPR 2024, equation 9. The standard deviation is that of the sample
    (``ddof=1``), as in the authors' PyTorch code; `jnp.std` has ``ddof=0``.

    Args:
      logits: ``[..., classes]``; ``-inf`` classes are excluded from the statistics and stay ``-inf``.

    Returns:
      Standardized logits ``[..., classes]``. Constant rows (a head that starts at zero, a single class) give 0, with
      gradient 0: the formula's derivative there is 10⁷, from which no network recovers.

    Raises:
      ValueError: the logits are not floating point.

    >>> standardize_logits(jnp.array([[0.0, 1.0, 2.0]])).round(4)
    Array([[-1.,  0.,  1.]], dtype=float32)
    """
    logits = _checks.logits("logits", logits)
    finite = logits > -jnp.inf
    # A shift cancels. This one makes a constant row exactly 0, where a rounding error would be divided by 1e-7.
    shift = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    values = jnp.where(finite, logits - jnp.where(shift > -jnp.inf, shift, 0), 0)
    count = jnp.sum(finite, axis=-1, keepdims=True)
    centered = jnp.where(finite, values - jnp.sum(values, axis=-1, keepdims=True) / jnp.maximum(count, 1), 0)
    variance = jnp.sum(centered**2, axis=-1, keepdims=True) / jnp.maximum(count - 1, 1)
    # Constant logits have every direction as their limit: 0 is the one without a sign, and its derivative is not 1e7.
    varied = variance > 0
    standard = jnp.where(varied, centered, 0) / (jnp.sqrt(jnp.where(varied, variance, 1)) + 1e-7)
    return jnp.where(finite, standard, -jnp.inf)


def _correlation(a: Array, b: Array, included: Array, *, axis: int, axis_name: str | None = None) -> Array:
    """Pearson correlation of a and b along an axis, over the included entries."""

    def total(x: Array) -> Array:
        x = jnp.sum(x, axis=axis, keepdims=True, dtype=a.dtype)
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    def centered(x: Array) -> Array:
        # A shift cancels. This one makes a constant exactly 0, so that no rounding errors are correlated.
        shift = jax.lax.stop_gradient(jnp.max(jnp.where(included, x, 0), axis=axis, keepdims=True, initial=0))
        shift = shift if axis_name is None else jax.lax.pmax(shift, axis_name)
        x = jnp.where(included, x - shift, 0)
        return jnp.where(included, x - total(x) / jnp.maximum(total(included), 1), 0)

    a, b = centered(a), centered(b)
    squares = total(a**2), total(b**2)
    varied = (squares[0] > 0) & (squares[1] > 0)
    norms = [jnp.sqrt(jnp.where(varied, square, 1)) for square in squares]
    return jnp.squeeze(jnp.where(varied, total(a * b) / (norms[0] * norms[1] + 1e-8), 0), axis)
