"""Relation losses on rankings: which examples of a batch are nearest to an anchor, and in what order.

The teacher ranks each anchor's nearest examples, and the student's distances to these few should say the same. Every
function returns each anchor's share, and the mean over the anchors is the published value. With ``axis_name`` the
other devices' examples are candidates too, so that the result does not depend on how many devices share the batch.

The ranking is made from differences, block by block, so that ties are ties. The losses then see only the examples on
the list, ``[batch, list_size, features]``; no ``[batch, batch, features]`` array exists.

This file needs only jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["darkrank_hard", "darkrank_soft"]

_BLOCK = 1 << 20  # elements of the largest temporary: 4 MiB in float32


def darkrank_hard(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features_t"],
    *,
    alpha: float | Float[Array, ""] = 3.0,
    beta: float | Float[Array, ""] = 3.0,
    list_size: int = 4,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """DarkRank, hard: how unlikely the teacher's ranking is under the student's distances.

    With scores ``S_j = −α ‖x_i − x_j‖^β`` of the anchor's ``list_size`` nearest examples, nearest to the teacher first,
    ``−log P(π_t) = −Σ_k [S_k − log Σ_{l ≥ k} exp S_l]``: the Plackett–Luce model. Chen, Wang & Zhang, "DarkRank:
    Accelerating Deep Metric Learning via Cross Sample Similarities Transfer", AAAI 2018, equations 3 to 5 and 8. The
    paper ranks a batch for each query; here every example is the query once, and its list the part of the batch that
    the teacher finds nearest. Only the order of the teacher matters, so it has no gradient.

    Args:
      student: embeddings ``[batch, ...]``; what follows the batch is flattened. Usually of unit length.
      teacher: embeddings of the same batch, of any feature size.
      alpha: scale of the scores.
      beta: power of the distance, positive.
      list_size: how many of the nearest are ranked, a positive integer.
      where: True for the examples that count ``[batch]``; the others are on no list.
      axis_name: a mapped axis over which the batch is split, in the order of its devices.

    Returns:
      Each anchor's share ``[batch]``. Ties are in the order of the batch. In a small batch the list is shorter, and
      with fewer than two others there is nothing to rank, which gives 0. A distance of 0 has no gradient.

    Raises:
      ValueError: the batches differ, an input is not floating-point ``[batch, ...]``, or a hyperparameter is not
        positive.

    >>> student, teacher = jnp.array([[0.0], [0.5], [0.8]]), jnp.array([[0.0], [2.0], [1.0]])
    >>> [round(float(x), 4) for x in darkrank_hard(student, teacher)]
    [1.4334, 0.5569, 1.6648]
    """
    scores, _, valid, where = _ranked(student, teacher, alpha, beta, list_size, where, axis_name)
    return jnp.where(where, -_log_likelihood(scores, valid), 0)


def darkrank_soft(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features_t"],
    *,
    alpha: float | Float[Array, ""] = 3.0,
    beta: float | Float[Array, ""] = 3.0,
    list_size: int = 4,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """DarkRank, soft: KL between the teacher's and the student's distributions over all orders of the list.

    ``Σ_π P_t(π) log(P_t(π) / P_s(π))`` over the permutations π of the anchor's ``list_size`` nearest examples as the
    teacher sees them, ``P(π) = Π_k exp S_π(k) / Σ_{l ≥ k} exp S_π(l)`` with ``S_j = −α ‖x_i − x_j‖^β``. Chen, Wang &
    Zhang, "DarkRank: Accelerating Deep Metric Learning via Cross Sample Similarities Transfer", AAAI 2018, equations 3
    to 7. A list of 4 has 24 permutations.

    Args:
      student: embeddings ``[batch, ...]``; what follows the batch is flattened. Usually of unit length.
      teacher: embeddings of the same batch, of any feature size.
      alpha: scale of the scores.
      beta: power of the distance, positive.
      list_size: how many of the nearest are ranked, from 1 to 6.
      where: True for the examples that count ``[batch]``; the others are on no list.
      axis_name: a mapped axis over which the batch is split, in the order of its devices.

    Returns:
      Each anchor's share ``[batch]``. Ties are in the order of the batch. In a small batch the list is shorter, and
      with fewer than two others there is nothing to rank, which gives 0. A distance of 0 has no gradient.

    Raises:
      ValueError: the batches differ, an input is not floating-point ``[batch, ...]``, a hyperparameter is not
        positive, or the list has more than the 720 permutations of 6.

    >>> student, teacher = jnp.array([[0.0], [0.5], [0.8]]), jnp.array([[0.0], [2.0], [1.0]])
    >>> [round(float(x), 4) for x in darkrank_soft(student, teacher)]
    [1.4334, 0.5569, 0.2441]
    """
    if list_size > 6:
        raise ValueError(
            f"list_size: expected at most 6, which has 720 permutations, got {list_size}. darkrank_hard takes longer "
            "lists."
        )
    scores_s, scores_t, valid, where = _ranked(student, teacher, alpha, beta, list_size, where, axis_name)
    # What a shorter list lacks stands at its end. Of the permutations that leave it there, there is one for each order
    # of the rest.
    orders = jnp.array(list(itertools.permutations(range(scores_s.shape[1]))), jnp.int32)
    fixed = jnp.all(valid[:, None, :] | (orders == jnp.arange(orders.shape[1])[None, :])[None], axis=-1)
    log_s, log_t = (_log_likelihood(scores[:, orders], valid[:, None, :]) for scores in (scores_s, scores_t))
    p_s, p_t = jnp.exp(log_s), jnp.exp(log_t)
    # Both sum to 1. Their difference adds nothing, but takes the rounding of the logarithms out of a small divergence,
    # and makes the gradient of a perfect student exactly 0.
    return jnp.where(where, jnp.sum(jnp.where(fixed, p_t * (log_t - log_s) - p_t + p_s, 0), axis=1), 0)


def _log_likelihood(scores: Array, valid: Array) -> Array:
    """Plackett–Luce of the order in which the scores stand in the last axis, whose valid ones come first."""
    total = jnp.zeros(scores.shape[:-1], scores.dtype)
    if scores.shape[-1] == 0:  # of an empty batch
        return total
    rest = scores[..., -1]
    for k in reversed(range(scores.shape[-1] - 1)):
        rest = jnp.where(valid[..., k + 1], jnp.logaddexp(scores[..., k], rest), scores[..., k])
        total = total + jnp.where(valid[..., k], scores[..., k] - rest, 0)
    return total


def _ranked(
    student: Array,
    teacher: Array,
    alpha: float | Array,
    beta: float | Array,
    list_size: int,
    where: Array | None,
    axis_name: str | None,
) -> tuple[Array, Array, Array, Array]:
    """Both networks' scores ``[batch, list]`` in the teacher's order, 0 where the list is shorter, and where it is."""
    for name, number in (("alpha", alpha), ("beta", beta), ("list_size", list_size)):
        if not isinstance(number, jax.core.Tracer) and not number > 0:  # NaN is not
            raise ValueError(f"{name}: expected a positive number, got {number}.")
    student, teacher, where = _inputs(student, teacher, where)
    students, teachers, every = (_gather(x, axis_name) for x in (student, teacher, where))
    batch, size = len(where), len(every)
    own = jnp.arange(batch) + (0 if axis_name is None else jax.lax.axis_index(axis_name) * batch)
    other = where[:, None] & every[None, :] & (own[:, None] != jnp.arange(size)[None, :])
    nearness = jnp.where(other, -_squared_distances(teacher, teachers), -jnp.inf)
    nearness, index = jax.lax.top_k(nearness, min(list_size, size))  # of equals, the first
    valid = nearness > -jnp.inf

    def scores(x: Array, among: Array) -> Array:
        squares = _squared(x[:, None, :], among[jnp.where(valid, index, 0)])
        apart = valid & (squares > 0)
        return -alpha * jnp.where(apart, jnp.where(apart, squares, 1) ** (beta / 2), 0)  # a root has no slope at 0

    return scores(student, students), scores(teacher, teachers), valid, where


def _squared_distances(rows: Array, columns: Array) -> Array:
    """``‖rows_i − columns_j‖²`` ``[rows, columns]``, to rank by: without a gradient."""
    rows, columns = jax.lax.stop_gradient((rows, columns))
    return jax.lax.map(
        lambda row: _squared(row[None, :], columns),
        rows,
        batch_size=max(1, min(len(rows) // 2, _BLOCK // max(columns.size, 1))),
    )


def _squared(x: Array, y: Array) -> Array:
    """``‖x − y‖²`` over the last axis, exactly 0 for duplicates.

    A compiler may compute one example twice and round differently. What the coordinates' own precision cannot tell
    apart is therefore the same point.
    """
    squares = jnp.sum((x - y) ** 2, axis=-1)
    sizes = jnp.sum(x**2, axis=-1) + jnp.sum(y**2, axis=-1)
    return jnp.where(squares > (4 * jnp.finfo(squares.dtype).eps) ** 2 * jax.lax.stop_gradient(sizes), squares, 0)


def _gather(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


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
