"""Relations of inner products: how similar the examples of a batch are.

Similarities are ``[batch, batch]`` products in full precision. Unlike a distance, a cosine has no kink at duplicates,
so that its rounding errors are harmless. No ``[batch, batch, features]`` array exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .. import _checks, _numerics
from . import _pairs

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["similarity_preserving", "correlation_congruence", "consecutive_correlation", "probabilistic_transfer"]


def similarity_preserving(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features_t"],
    *,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Squared difference of the row-normalized Gram matrices.

    Also known as: SP (similarity-preserving knowledge distillation).

    ``G = F Fᵀ``, each row divided by its L2 norm; the share of an anchor i is ``Σ_j (G_ij(s) − G_ij(t))² / B``, whose
    mean over the anchors is ``‖G(s) − G(t)‖²_F / B²``. Tung & Mori, "Similarity-Preserving Knowledge Distillation",
    ICCV 2019, equations 1 to 4. The published weight is 3000.

    Args:
      student: activations ``[batch, ...]``; all axes but the batch are flattened.
      teacher: activations of the same batch, of any feature size.
      where: mask, True for the examples to include ``[batch]``; masked examples are in no row and no column.
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
    student, teacher, where = _pairs.inputs(student, teacher, where)

    def rows(x: Array) -> Array:
        return _numerics.unit(
            _pairs.inner(x, _numerics.gather(x, axis_name))
        )  # a masked example is 0, and so are its row and column

    return jnp.sum((rows(student) - rows(teacher)) ** 2, axis=1) / _numerics.count(_numerics.gather(where, axis_name))


def correlation_congruence(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features_t"],
    *,
    gamma: float = 0.4,
    order: int = 2,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Squared difference of Gaussian kernels, by their Taylor series.

    Also known as: CC (correlation congruence), CCKD.

    ``K_ij = Σ_p e^{−2γ} (2γ)^p / p! ⟨f_i, f_j⟩^p`` for p from 0 to ``order``, of unit vectors f: the series of ``exp(−γ
    ‖f_i − f_j‖²)``. The share of an anchor i is ``mean_j (K_ij(s) − K_ij(t))²``. Peng et al., "Correlation Congruence
    for Knowledge Distillation", ICCV 2019, equations 6, 10 and 11. Code that is named after this paper often has
    `consecutive_correlation`, another loss; torchdistill's is the root of the mean over the pairs, divided by the
    batch.

    Args:
      student: embeddings ``[batch, ...]``; all axes but the batch are flattened.
      teacher: embeddings of the same batch, of any feature size.
      gamma: γ of the Gaussian kernel, positive.
      order: the highest power of the series, P of the paper.
      where: mask, True for the examples to include ``[batch]``; masked examples are partners of no example.
      axis_name: a mapped axis over which the batch is split.

    Returns:
      Each anchor's share ``[batch]``. A vector of zeros has inner product 0 with all others; a batch of one gives 0.

    Raises:
      ValueError: the batches differ, an input is not floating-point ``[batch, ...]``, the order is negative, or γ is
        not positive.

    >>> apart, alike = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> correlation_congruence(apart, alike).mean().round(4)
    Array(0.1266, dtype=float32)
    """
    order = _checks.whole("order", order, least=0, expected="the highest power of the series, 0 or more")
    _checks.positive("gamma", gamma)
    student, teacher, where = _pairs.inputs(student, teacher, where)
    every = _numerics.gather(where, axis_name)

    def kernel(x: Array) -> Array:
        x = _numerics.unit(x)
        inner = _pairs.inner(x, _numerics.gather(x, axis_name))
        series = jnp.ones_like(inner)
        for power in range(order, 0, -1):  # 1 + 2γz/1 (1 + 2γz/2 (1 + ...))
            series = 1 + 2 * gamma / power * inner * series
        return jnp.exp(-2.0 * gamma) * series

    squares = jnp.where(where[:, None] & every[None, :], (kernel(student) - kernel(teacher)) ** 2, 0)
    return jnp.sum(squares, axis=1) / _numerics.count(every)


def consecutive_correlation(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features"],
    *,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Inner products of the errors of consecutive examples of the batch.

    Also known as: CC (correlation congruence) in the common benchmarks.

    ``mean_i Σ_d |s_i − t_i|_d |s_{i+1} − t_{i+1}|_d`` over the B − 1 pairs of neighbors; the share of an anchor i is
    ``B / (B − 1)`` times its product with the next, and the last has none. The benchmark of "Contrastive Representation
    Distillation", ICLR 2020, and repositories after it attribute this loss to Peng et al., ICCV 2019; that paper's own
    loss is `correlation_congruence`. It depends on the order of the batch. The benchmark's weight is 0.02, on
    embeddings of 128 features.

    Args:
      student: embeddings ``[batch, ...]``.
      teacher: embeddings of the student's shape.
      where: mask, True for the examples to include ``[batch]``. The examples before and after a masked one are
        neighbors.
      axis_name: a mapped axis over which the batch is split, in the order of its devices.

    Returns:
      Each anchor's share ``[batch]``. A batch of one gives 0.

    Raises:
      ValueError: shapes differ, or an input is not floating-point ``[batch, ...]``.

    >>> student, teacher = jnp.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]), jnp.zeros((3, 2))
    >>> consecutive_correlation(student, teacher)
    Array([4.5, 0. , 0. ], dtype=float32)
    """
    shapes = jnp.shape(student), jnp.shape(teacher)
    student, teacher, where = _pairs.inputs(student, teacher, where)
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"teacher: expected the student's shape {list(shapes[0])}, got {list(shapes[1])}. Nothing is broadcast; "
            "embed both to one size first."
        )
    difference = student - teacher
    error = difference * jnp.sign(difference)  # the absolute value; jnp.abs has slope 1 at 0
    every, errors = _numerics.gather(where, axis_name), _numerics.gather(error, axis_name)
    size = len(every)
    # The first included example after each position, and `size` after the last one.
    first = jax.lax.cummin(jnp.where(every, jnp.arange(size), size), reverse=True)
    following = jnp.append(first, size)[1:][_numerics.local_rows(len(error), axis_name)]
    pair = where & (following < size)
    products = jnp.sum(error * errors[jnp.where(pair, following, 0)], axis=1)
    count = _numerics.count(every)
    return jnp.where(pair, products, 0) * count / jnp.maximum(count - 1, 1)


def probabilistic_transfer(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features_t"],
    *,
    epsilon: float | Float[Array, ""] = 1e-7,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """KL divergence between the distributions that cosines give each anchor.

    Also known as: PKT (probabilistic knowledge transfer).

    ``p_ij = (1 + cos_ij) / 2`` divided by its sum over j, with ``cos_ij`` of ``x / (‖x‖ + ε)``; the share of an anchor
    i is ``mean_j p_ij(t) log((p_ij(t) + ε) / (p_ij(s) + ε))``. Passalis & Tefas, "Learning Deep Representations with
    Probabilistic Knowledge Transfer", ECCV 2018, equations 5 to 8. As in the authors' code, an anchor is among its own
    neighbors and the mean is over all B² pairs, which makes the value B times smaller than the divergence; the usual
    weight is 30000.

    Args:
      student: embeddings ``[batch, ...]``; all axes but the batch are flattened.
      teacher: embeddings of the same batch, of any feature size.
      epsilon: ε > 0, which keeps the logarithm finite. Near 0 the value is no exact divergence for that reason: it may
        be negative by about ε.
      where: mask, True for the examples to include ``[batch]``; masked examples are neighbors of no example.
      axis_name: a mapped axis over which the batch is split.

    Returns:
      Each anchor's share ``[batch]``. A vector of zeros has cosine 0 with all others; a batch of one gives 0.

    Raises:
      ValueError: the batches differ, an input is not floating-point ``[batch, ...]``, or ε is not positive.

    >>> apart, alike = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> probabilistic_transfer(apart, alike).mean().round(4)
    Array(0.0294, dtype=float32)
    """
    _checks.positive("epsilon", epsilon)
    student, teacher, where = _pairs.inputs(student, teacher, where)
    every = _numerics.gather(where, axis_name)
    pair = where[:, None] & every[None, :]

    def probability(x: Array) -> Array:
        x = x / (_numerics.norm(x) + epsilon)
        # The cosine of opposite vectors may be rounded below -1, which would make the logarithm NaN.
        similar = jnp.where(pair, (jnp.maximum(_pairs.inner(x, _numerics.gather(x, axis_name)), -1) + 1) / 2, 0)
        total = jnp.sum(similar, axis=1, keepdims=True)
        return similar / jnp.where(total > 0, total, 1)

    p_s, p_t = probability(student), probability(teacher)
    return jnp.sum(p_t * (jnp.log(p_t + epsilon) - jnp.log(p_s + epsilon)), axis=1) / _numerics.count(every)
