"""Numerics that the losses share: masks, softmax, KL, norms, pooling, mapped axes.

Every function is finite, with finite derivatives, at the inputs where the textbook formula is not: ``-inf`` logits,
vectors of zeros, duplicates, rows without any entry. Such an input is replaced *before* the operation that has no
derivative there (`jnp.where` on its argument), since a `jnp.where` on the result alone multiplies the infinite
derivative by 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from . import _checks

if TYPE_CHECKING:
    from jaxtyping import Array

# --- masks ------------------------------------------------------------------------------------------------------------


def mask_inputs(where: Array | None, *arrays: Array) -> tuple[Array, ...]:
    """Returns the arrays with zeros where the mask of their leading axes is False.

    Inputs are replaced before anything nonlinear: a masked example may hold NaN, and 0 · NaN is NaN.
    """
    if where is None:
        return arrays
    return tuple(jnp.where(jnp.expand_dims(where, tuple(range(where.ndim, x.ndim))), x, 0) for x in arrays)


def mask_values(values: Array, where: Array | None) -> Array:
    """Returns the values, and 0 where the mask is False."""
    return values if where is None else jnp.where(where, values, 0)


def count(where: Array, axis: int | tuple[int, ...] | None = None, dtype: Any = None) -> Array:
    """Returns the number of included entries, and 1 for an empty mask: a divisor."""
    total = jnp.maximum(jnp.sum(where, axis=axis), 1)
    return total if dtype is None else total.astype(dtype)


# --- softmax and KL ---------------------------------------------------------------------------------------------------


def lowest(dtype: Any) -> float:
    """Returns a score that excludes a class, of which multiples do not overflow."""
    return -(float(jnp.finfo(dtype).max) ** 0.8)


def soften(scores: Array, temperature: Any) -> Array:
    """Returns scores over T, up to a constant for each row, which a softmax ignores.

    The largest is subtracted *before* the division. A compiler that knows T multiplies by 1 / T in one place and
    divides in another; the softmax of large scores would then subtract a maximum that is another rounding of itself.
    The derivative of ``-inf / T`` with respect to T is infinite, and a finite score stays finite.
    """
    temperature = jnp.asarray(temperature, scores.dtype)
    finite = scores != -jnp.inf
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf))
    shifted = jnp.where(finite, scores, 0) - jnp.where(top == -jnp.inf, 0, top)
    least = lowest(scores.dtype)
    softened = jnp.maximum(shifted, least) / (temperature[..., None] if temperature.ndim else temperature)
    return jnp.where(finite, jnp.maximum(softened, least), -jnp.inf)


def log_normalizer(scores: Array) -> Array:
    """Returns ``log Σ eˣ`` (kept) of scores that `soften` returns: the largest is 0."""
    return jnp.log(jnp.sum(jnp.exp(scores), axis=-1, keepdims=True))


def softmax_softened(scores: Array) -> tuple[Array, Array]:
    """Returns log-softmax and softmax of scores that `soften` returns."""
    exponentials = jnp.exp(scores)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return scores - jnp.log(total), exponentials / total


def log_softmax_finite(scores: Array) -> tuple[Array, Array]:
    """Log-softmax over the finite entries of the last axis, and their mask.

    Entries of ``-inf`` get an arbitrary finite value, and so does a row that has no others.
    """
    finite = scores != -jnp.inf
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf))
    shifted = jnp.where(finite, scores - jnp.where(top == -jnp.inf, 0, top), 0)
    total = jnp.sum(jnp.where(finite, jnp.exp(shifted), 0), axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.where(total == 0, 1, total)), finite


def pair(student: Any, teacher: Any, where: Any) -> tuple[Array, Array, Array | None]:
    """Returns checked, masked logits of one shape, and the mask."""
    student, teacher = _checks.logits("student", student), _checks.logits("teacher", teacher)
    _checks.same_shape(student, teacher, "reshape one of them, or select the classes that both networks have")
    where = _checks.mask(where, student.shape[:-1])
    return *mask_inputs(where, student, teacher), where


def softened(student: Any, teacher: Any, temperature: Any, where: Any) -> tuple[Array, Array, Array, Array | None]:
    """Returns masked logits of a softmax over T, T for each example, and the mask."""
    student, teacher, where = pair(student, teacher, where)
    _checks.several("student", student, student.shape[-1])
    scale = _checks.temperature(temperature, student.dtype, student.shape[:-1])
    return soften(student, scale), soften(teacher, scale), scale, where


def log_mixture(log_p: Array, log_q: Array, share: float | Array) -> Array:
    """Returns ``log(α p + (1−α) q)`` with α the share of p."""
    if not isinstance(share, jax.core.Tracer) and share in (0, 1):
        return log_p if share else log_q
    # logaddexp has no derivative at a class that both exclude.
    possible = (log_p > -jnp.inf) | (log_q > -jnp.inf)
    parts = (jnp.where(possible, x, 0) for x in (log_p + jnp.log(share), log_q + jnp.log1p(-share)))
    return jnp.where(possible, jnp.logaddexp(*parts), -jnp.inf)


def _excess(gap: Array) -> Array:
    """Computes ``e⁻ᵍ + g − 1`` for ``|g| < 1`` from its series.

    The series is exact where the terms cancel, and cheaper than an `expm1`.
    """
    last = 11 if gap.dtype == jnp.float32 else 18
    rest = jnp.zeros_like(gap)
    for k in range(last, 1, -1):
        rest = rest * gap + (-1) ** k / math.factorial(k)
    return rest * gap * gap


def kl_terms(gap: Array, p: Array, q: Array) -> Array:
    """Returns the terms of ``KL(p ‖ q)`` for ``g = log p − log q``, none negative.

    Since ``Σ (q − p) = 0``, the KL is ``Σ p (g + e⁻ᵍ − 1)``: the rounding errors of the two logarithms, which would
    hide a small KL, cancel term by term.
    """
    gap = jnp.where(p > 0, gap, 0)  # where p is 0, it may be inf - inf
    near = (p > 0) & (jnp.abs(gap) < 1)
    return jnp.where(near, p * _excess(jnp.where(near, gap, 0)), p * gap + (q - p))


def _divergence(log_p: Array, log_q: Array, p: Array, q: Array) -> Array:
    """Returns ``Σ p (log p − log q)`` over the last axis, with 0 log 0 = 0."""
    return jnp.sum(kl_terms(log_p - log_q, p, q), axis=-1)


def slope(p: Array, gap: Array) -> Array:
    """Returns the KL's derivative with respect to log p, and 0 where it is infinite."""
    return p * jnp.where((p > 0) & (gap < jnp.inf), gap, 0)


@jax.custom_jvp
def kl(log_p: Array, log_q: Array) -> Array:
    """``KL(p ‖ q)`` over the last axis, of distributions given by their logarithms."""
    return _divergence(log_p, log_q, jnp.exp(log_p), jnp.exp(log_q))


@kl.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """Keeps one array for backward, where autodiff would keep each term of the series."""
    p, q = jnp.exp(primals[0]), jnp.exp(primals[1])
    by_p = slope(p, primals[0] - primals[1])
    return kl(*primals), jnp.sum(by_p * tangents[0] + (q - p) * tangents[1], axis=-1)


@jax.custom_jvp
def softmax_kl(x: Array, y: Array) -> Array:
    """``KL(softmax(x) ‖ softmax(y))`` of scores that `soften` returns."""
    (log_p, p), (log_q, q) = map(softmax_softened, (x, y))
    return _divergence(log_p, log_q, p, q)


@softmax_kl.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """Composes the derivatives of `kl` and of the softmax, from p, q and their logs."""
    (log_p, p), (log_q, q) = map(softmax_softened, primals)
    by_p = slope(p, log_p - log_q)
    by_p = by_p - p * jnp.sum(by_p, axis=-1, keepdims=True)
    return softmax_kl(*primals), jnp.sum(by_p * tangents[0] + (q - p) * tangents[1], axis=-1)


def softmax_kl_finite(x: Array, y: Array) -> Array:
    """`softmax_kl` for scores whose rows may be all ``-inf``: such a row of x gives 0."""
    (log_p, finite_p), (log_q, finite_q) = log_softmax_finite(x), log_softmax_finite(y)
    finite_q = finite_q & jnp.any(finite_p, axis=-1, keepdims=True)
    # Added, since a selection would cut the part of an excluded score in the derivative of the other ones.
    return kl(jnp.where(finite_p, log_p, -jnp.inf), log_q + jnp.where(finite_q, 0, -jnp.inf))


@jax.custom_jvp
def bernoulli_kl(x: Array, y: Array) -> Array:
    """``KL(σ(x) ‖ σ(y))`` between Bernoulli distributions, element by element."""

    def outcome(x: Array, y: Array) -> Array:
        return kl_terms(jax.nn.log_sigmoid(x) - jax.nn.log_sigmoid(y), jax.nn.sigmoid(x), jax.nn.sigmoid(y))

    return outcome(x, y) + outcome(-x, -y)


@bernoulli_kl.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """Slopes ``σ(x) σ(−x) (x − y)`` of x, 0 if infinite, and ``σ(y) − σ(x)`` of y."""
    x, y = primals
    # Next to 1 a probability has no digits left, and the difference is that of the other outcome.
    upper = x + y > 0
    slope = jax.nn.sigmoid(jnp.where(upper, -x, y)) - jax.nn.sigmoid(jnp.where(upper, -y, x))
    both_finite = jnp.isfinite(x) & jnp.isfinite(y)
    own = jax.nn.sigmoid(x) * jax.nn.sigmoid(-x) * jnp.where(both_finite, x - y, 0)
    return bernoulli_kl(x, y), own * tangents[0] + slope * tangents[1]


def apart(p: Array, q: Array) -> Array:
    """Returns ``p − q`` of probabilities, and 0 where it is a rounding error.

    Its absolute value has a kink at 0, where the sign of an error would be a derivative of any size.
    """
    gap = p - q
    return jnp.where(jnp.abs(gap) > 8 * jnp.finfo(gap.dtype).eps * (p + q), gap, 0)


def infinite_where(weights: Array, finite: Array) -> Array:
    """Returns infinity for rows with a weight at an excluded entry, and 0 for others.

    The infinity is added as a constant: the product of a weight and an infinite logarithm has no finite derivative.
    """
    return jnp.where(jnp.any((weights > 0) & ~finite, axis=-1), jnp.inf, 0)


# --- norms and products -----------------------------------------------------------------------------------------------


def sqrt(x: Array) -> Array:
    """Returns the square root, with derivative 0 at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def norm(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """Returns the L2 norm over ``axis`` (kept), with derivative 0 at zeros."""
    return sqrt(jnp.sum(x**2, axis=axis, keepdims=True))


def unit(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """Returns ``x / max(‖x‖, 1e-12)``; a vector of zeros stays one, with derivative 0."""
    size = norm(x, axis)
    return jnp.where(size > 0, x / jnp.maximum(size, 1e-12), 0)


def direction(x: Array, axis: int | tuple[int, ...] = -1, least: float | Array = 1e-12) -> tuple[Array, Array]:
    """Returns ``x / ‖x‖``, or 0 where the norm is at most ``least``; and that mask.

    For cosines, where a vector of rounding errors must not be taken for a direction; `unit` shrinks it instead.
    """
    square = jnp.sum(x**2, axis=axis, keepdims=True)
    none = square <= least**2
    return jnp.where(none, 0, x / jnp.sqrt(jnp.where(none, 1, square))), none


def einsum(axes: str, *arrays: Array) -> Array:
    """`jnp.einsum` in full precision: accelerators round factors to 8 or 11 bits."""
    return jnp.einsum(axes, *arrays, precision=jax.lax.Precision.HIGHEST)


def huber(error: Array) -> Array:
    """Huber loss with δ = 1."""
    size = jnp.abs(error)
    quadratic = jnp.minimum(size, 1)
    return 0.5 * quadratic**2 + (size - quadratic)


# --- maps of different sizes ------------------------------------------------------------------------------------------


def match_size(student: Array, teacher: Array) -> tuple[Array, Array]:
    """Pools the larger of two maps, on each axis, to the size of the smaller.

    Args:
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same rank; sizes and channels may differ.

    Returns:
      Both maps, of one height and width, as means over adaptive windows.

    Raises:
      ValueError: a map is not a floating-point ``[batch, height, width, channels]``.

    >>> [x.shape for x in match_size(jnp.ones((1, 4, 4, 2)), jnp.ones((1, 2, 8, 3)))]
    [(1, 2, 4, 2), (1, 2, 4, 3)]
    """
    for name, x in (("student", student), ("teacher", teacher)):
        _checks.floating(name, x, "maps [batch, height, width, channels]", rank=4)
    for axis in (1, 2):
        size = min(student.shape[axis], teacher.shape[axis])
        student, teacher = adaptive_mean(student, axis, size), adaptive_mean(teacher, axis, size)
    return student, teacher


def mask_maps(where: Array | None, student: Array, teacher: Array) -> tuple[Array, Array, Array | None, Array | None]:
    """Returns masked maps, the mask of their examples, and that of their positions.

    Args:
      where: mask ``[batch]`` or ``[batch, height, width]`` of the student's size, or None.
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same rank.

    Returns:
      Both maps with zeros where they are masked; the examples with any position; and the positions of the maps that
      `match_size` returns, None unless a mask of positions is given. Of a pooled map they are those whose whole window
      is included.
    """
    if where is None or where.ndim == 1:
        student, teacher = mask_inputs(where, student, teacher)
        return student, teacher, where, None
    (student,) = mask_inputs(where, student)
    (teacher,) = mask_inputs(where if teacher.shape[:3] == where.shape else jnp.any(where, axis=(1, 2)), teacher)
    outside = jnp.where(where, 0.0, 1.0)
    for axis in (1, 2):
        outside = adaptive_mean(outside, axis, min(student.shape[axis], teacher.shape[axis]))
    return student, teacher, jnp.any(outside == 0, axis=(1, 2)), outside == 0


def adaptive_mean(x: Array, axis: int, size: int) -> Array:
    """Averages one axis in PyTorch's adaptive windows, ⌊iN/n⌋ to ⌈(i+1)N/n⌉ of N."""
    full = x.shape[axis]
    if full == size:
        return x
    if full % size == 0:
        return jnp.mean(x.reshape(*x.shape[:axis], size, full // size, *x.shape[axis + 1 :]), axis=axis + 1)
    bounds = [(i * full // size, -(-(i + 1) * full // size)) for i in range(size)]
    windows = [[(start <= j < stop) / (stop - start) for j in range(full)] for start, stop in bounds]
    pooled = jnp.tensordot(jnp.array(windows, x.dtype), x, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(pooled, 0, axis)


# --- mapped axes ------------------------------------------------------------------------------------------------------


def gather(x: Array, axis_name: str | None) -> Array:
    """Returns the rows of all devices of a mapped axis, in the order of the devices."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def local_rows(size: int, axis_name: str | None) -> Array:
    """Returns the indices of this device's ``size`` rows in the result of `gather`."""
    return jnp.arange(size) + (0 if axis_name is None else jax.lax.axis_index(axis_name) * size)


def varying_axes(x: Array) -> frozenset[str]:
    """Returns the axes of `jax.shard_map` over which an array is typed as varying."""
    kind: Any = jax.typeof(x)
    if not hasattr(kind, "manual_axis_type"):  # JAX before 0.9
        return frozenset(kind.vma)
    return frozenset(kind.manual_axis_type.varying)


def mark_varying(x: Array, axes: frozenset[str]) -> Array:
    """Types an array as varying over the axes, over which it must not vary yet."""
    lax: Any = jax.lax
    names = tuple(sorted(axes))
    varying: Array = lax.pcast(x, names, to="varying") if hasattr(lax, "pcast") else lax.pvary(x, names)  # before 0.8
    return varying
