"""Relation losses on inner products: which examples of a batch are alike, and how much.

Every function returns each anchor's share, and the mean over the anchors is the published value. With ``axis_name``
the other devices' examples take part, so that each local anchor relates to the global batch and the result does not
depend on how many devices share it.

Similarities are ``[batch, batch]`` products at the highest precision. Unlike a distance, a cosine of duplicates has no
kink, so that its rounding needs no care. No ``[batch, batch, features]`` array exists.

This file needs only jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = [
    "similarity_preserving",
    "correlation_congruence",
    "consecutive_correlation",
    "probabilistic_transfer",
]


def similarity_preserving(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features_t"],
    *,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Similarity-preserving (SP): squared difference of the row-normalised Gram matrices.

    ``G = F Fᵀ``, each row divided by its L2 norm; the share of an anchor i is ``Σ_j (G_ij(s) − G_ij(t))² / B``, whose
    mean over the anchors is ``‖G(s) − G(t)‖²_F / B²``. Tung & Mori, "Similarity-Preserving Knowledge Distillation",
    ICCV 2019, equations 1 to 4. The published weight is 3000.

    Args:
      student: activations ``[batch, ...]``; what follows the batch is flattened.
      teacher: activations of the same batch, of any feature size.
      where: True for the examples that count ``[batch]``; the others are in no row and no column.
      axis_name: a mapped axis over which the batch is split.

    Returns:
      Each anchor's share ``[batch]``. An example of zeros has a row of zeros, with no gradient of its own; a batch of
      one gives 0.

    Raises:
      ValueError: the batches differ, or an input is not floating-point ``[batch, ...]``.

    >>> apart, alike = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> similarity_preserving(apart, alike).mean().round(4)
    Array(0.2929, dtype=float32)
    """
    student, teacher, where = _inputs(student, teacher, where)

    def rows(x: Array) -> Array:
        return _unit(_inner(x, _gather(x, axis_name)))  # what does not count is 0, and so are its columns

    return jnp.sum((rows(student) - rows(teacher)) ** 2, axis=1) / _count(_gather(where, axis_name))


def correlation_congruence(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features_t"],
    *,
    gamma: float = 0.4,
    order: int = 2,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Correlation congruence (CC): squared difference of Gaussian kernels, by their Taylor series.

    ``K_ij = Σ_p e^{−2γ} (2γ)^p / p! ⟨f_i, f_j⟩^p`` for p from 0 to ``order``, of unit vectors f: the series of
    ``exp(−γ ‖f_i − f_j‖²)``. The share of an anchor i is ``mean_j (K_ij(s) − K_ij(t))²``. Peng et al., "Correlation
    Congruence for Knowledge Distillation", ICCV 2019, equations 6, 10 and 11. Code that is named after this paper
    often holds `consecutive_correlation`, another loss.

    Args:
      student: embeddings ``[batch, ...]``; what follows the batch is flattened.
      teacher: embeddings of the same batch, of any feature size.
      gamma: γ of the Gaussian kernel.
      order: the highest power of the series, P of the paper.
      where: True for the examples that count ``[batch]``; the others are no one's partner either.
      axis_name: a mapped axis over which the batch is split.

    Returns:
      Each anchor's share ``[batch]``. A vector of zeros has inner product 0 with all; a batch of one gives 0.

    Raises:
      ValueError: the batches differ, an input is not floating-point ``[batch, ...]``, or the order is negative.

    >>> apart, alike = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> correlation_congruence(apart, alike).mean().round(4)
    Array(0.1266, dtype=float32)
    """
    if order < 0:
        raise ValueError(f"order: expected the highest power of the series, 0 or more, got {order}.")
    student, teacher, where = _inputs(student, teacher, where)
    every = _gather(where, axis_name)

    def kernel(x: Array) -> Array:
        x = _unit(x)
        inner = _inner(x, _gather(x, axis_name))
        series = jnp.ones_like(inner)
        for power in range(order, 0, -1):  # 1 + 2γz/1 (1 + 2γz/2 (1 + ...))
            series = 1 + 2 * gamma / power * inner * series
        return jnp.exp(-2.0 * gamma) * series

    squares = jnp.where(where[:, None] & every[None, :], (kernel(student) - kernel(teacher)) ** 2, 0)
    return jnp.sum(squares, axis=1) / _count(every)


def consecutive_correlation(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features"],
    *,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Consecutive correlation: inner products of the errors of examples that follow one another in the batch.

    ``mean_i Σ_d |s_i − t_i|_d |s_{i+1} − t_{i+1}|_d`` over the B − 1 pairs of neighbours; the share of an anchor i is
    ``B / (B − 1)`` times its product with the next, and the last has none. This is what the benchmark of "Contrastive
    Representation Distillation", ICLR 2020, and repositories after it run under the name of Peng et al., ICCV 2019;
    that paper's own loss is `correlation_congruence`. It depends on the order of the batch. The benchmark's weight is
    0.02, on embeddings of 128 features.

    Args:
      student: embeddings ``[batch, ...]``.
      teacher: embeddings of the student's shape.
      where: True for the examples that count ``[batch]``. Those on both sides of one that does not are neighbours.
      axis_name: a mapped axis over which the batch is split, in the order of its devices.

    Returns:
      Each anchor's share ``[batch]``. A batch of one gives 0.

    Raises:
      ValueError: shapes differ (nothing is ever broadcast), or an input is not floating-point ``[batch, ...]``.

    >>> student, teacher = jnp.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]), jnp.zeros((3, 2))
    >>> consecutive_correlation(student, teacher)
    Array([4.5, 0. , 0. ], dtype=float32)
    """
    shapes = jnp.shape(student), jnp.shape(teacher)
    student, teacher, where = _inputs(student, teacher, where)
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"teacher: expected the student's shape {list(shapes[0])}, got {list(shapes[1])}. Nothing is broadcast; "
            "embed both to one size first."
        )
    difference = student - teacher
    error = difference * jnp.sign(difference)  # the absolute value; jnp.abs has a slope at 0
    every, errors = _gather(where, axis_name), _gather(error, axis_name)
    size = len(every)
    # The first that counts at or after each position, moved by one; `size` after the last.
    first = jax.lax.cummin(jnp.where(every, jnp.arange(size), size), reverse=True)
    following = _local(jnp.append(first, size)[1:], len(error), axis_name)
    pair = where & (following < size)
    products = jnp.sum(error * errors[jnp.where(pair, following, 0)], axis=1)
    count = _count(every)
    return jnp.where(pair, products, 0) * count / jnp.maximum(count - 1, 1)


def probabilistic_transfer(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features_t"],
    *,
    epsilon: float | Float[Array, ""] = 1e-7,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Probabilistic knowledge transfer (PKT): KL between the distributions that cosines give each anchor.

    ``p_ij = (1 + cos_ij) / 2`` divided by its sum over j, with ``cos_ij`` of ``x / (‖x‖ + ε)``; the share of an anchor
    i is ``mean_j p_ij(t) log((p_ij(t) + ε) / (p_ij(s) + ε))``. Passalis & Tefas, "Learning Deep Representations with
    Probabilistic Knowledge Transfer", ECCV 2018, equations 5 to 8. As in the authors' code, an anchor is among its own
    neighbours and the mean is over all B² pairs, which makes the value B times smaller than the divergence; the weight
    usually run with it is 30000.

    Args:
      student: embeddings ``[batch, ...]``; what follows the batch is flattened.
      teacher: embeddings of the same batch, of any feature size.
      epsilon: ε > 0, which keeps the logarithm finite. It also makes the value, near 0, that of no true divergence: it
        may be negative by a rounding of that size.
      where: True for the examples that count ``[batch]``; the others are no one's neighbour either.
      axis_name: a mapped axis over which the batch is split.

    Returns:
      Each anchor's share ``[batch]``. A vector of zeros has cosine 0 with all; a batch of one gives 0.

    Raises:
      ValueError: the batches differ, an input is not floating-point ``[batch, ...]``, or ε is not positive.

    >>> apart, alike = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> probabilistic_transfer(apart, alike).mean().round(4)
    Array(0.0294, dtype=float32)
    """
    if not isinstance(epsilon, jax.core.Tracer) and not epsilon > 0:  # NaN is not
        raise ValueError(f"epsilon: expected a positive number, got {epsilon}.")
    student, teacher, where = _inputs(student, teacher, where)
    every = _gather(where, axis_name)
    pair = where[:, None] & every[None, :]

    def probability(x: Array) -> Array:
        x = x / (_norm(x) + epsilon)
        # Opposite vectors may round to a cosine below -1, and the logarithm to NaN.
        similar = jnp.where(pair, (jnp.maximum(_inner(x, _gather(x, axis_name)), -1) + 1) / 2, 0)
        total = jnp.sum(similar, axis=1, keepdims=True)
        return similar / jnp.where(total > 0, total, 1)

    p_s, p_t = probability(student), probability(teacher)
    return jnp.sum(p_t * (jnp.log(p_t + epsilon) - jnp.log(p_s + epsilon)), axis=1) / _count(every)


def _inner(rows: Array, columns: Array) -> Array:
    return jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)


def _norm(x: Array) -> Array:
    square = jnp.sum(x**2, axis=1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)  # sqrt has no slope at 0


def _unit(x: Array) -> Array:
    """Rows over their L2 norm; a row of zeros stays one and has no slope."""
    norm = _norm(x)
    return jnp.where(norm > 0, x / jnp.maximum(norm, 1e-12), 0)


def _count(every: Array) -> Array:
    return jnp.maximum(jnp.sum(every), 1)


def _gather(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def _local(every: Array, size: int, axis_name: str | None) -> Array:
    """This device's slice of what is known of the whole batch."""
    return (
        every if axis_name is None else jax.lax.dynamic_slice_in_dim(every, jax.lax.axis_index(axis_name) * size, size)
    )


def _inputs(student: Array, teacher: Array, where: Array | None) -> tuple[Array, Array, Array]:
    student, teacher = jnp.asarray(student), jnp.asarray(teacher)
    for name, x in (("student", student), ("teacher", teacher)):
        if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 2:
            raise ValueError(f"{name}: expected floating-point embeddings [batch, ...], got {x.dtype}{list(x.shape)}.")
    batch = student.shape[0]
    if teacher.shape[0] != batch:
        raise ValueError(f"teacher: expected the student's batch of {batch}, got {teacher.shape[0]}.")
    where = jnp.ones(batch, bool) if where is None else jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != (batch,):
        raise ValueError(f"where: expected bool[{batch}], True for what counts, got {where.dtype}{list(where.shape)}.")
    student, teacher = (
        jnp.where(where[:, None], x.reshape(batch, math.prod(x.shape[1:])), 0).astype(
            jnp.promote_types(x.dtype, jnp.float32)
        )
        for x in (student, teacher)
    )
    return student, teacher, where
