"""Relations of rankings: the examples nearest to an anchor, and their order.

The teacher ranks the nearest examples of each anchor, and the student's distances to these are compared with its
ranking.

The ranking is computed from differences, block by block, so that equal distances are ties. The losses then see only the
examples on the list, ``[batch, list_size, features]``; no ``[batch, batch, features]`` array exists.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .. import _checks, _numerics
from . import _pairs

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["darkrank_hard", "darkrank_soft"]


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
    """Negative log-likelihood of the teacher's ranking under the student's distances.

    Also known as: DarkRank (hard), ListMLE.

    With scores ``S_j = −α ‖x_i − x_j‖^β`` of the anchor's ``list_size`` nearest examples, in the teacher's order, it is
    ``−log P(π_t) = −Σ_k [S_k − log Σ_{l ≥ k} exp S_l]``: the Plackett–Luce model. Chen, Wang & Zhang, "DarkRank:
    Accelerating Deep Metric Learning via Cross Sample Similarities Transfer", AAAI 2018, equations 3 to 5 and 8. The
    paper ranks a batch for each query; here every example is the query once, and its list is the part of the batch that
    is nearest for the teacher. Only the teacher's order is used, so it has no gradient.

    Args:
      student: embeddings ``[batch, ...]``; all axes but the batch are flattened. Usually of unit length.
      teacher: embeddings of the same batch, of any feature size.
      alpha: scale of the scores.
      beta: power of the distance, positive.
      list_size: number of nearest examples that are ranked, a positive integer.
      where: mask, True for the examples to include ``[batch]``; masked examples are on no list.
      axis_name: a mapped axis over which the batch is split, in the order of its devices.

    Returns:
      Each anchor's share ``[batch]``. Ties are ordered as in the batch. In a small batch the list is shorter; with
      fewer than two other examples the value is 0. A distance of 0 has gradient 0.

    Raises:
      ValueError: the batches differ, an input is not floating-point ``[batch, ...]``, or a hyperparameter is not
        positive.

    >>> student, teacher = jnp.array([[0.0], [0.5], [0.8]]), jnp.array([[0.0], [2.0], [1.0]])
    >>> [round(float(x), 4) for x in darkrank_hard(student, teacher)]
    [1.4334, 0.5569, 1.6648]
    """
    scores, _, valid, where = _ranked(
        student, teacher, alpha=alpha, beta=beta, list_size=list_size, where=where, axis_name=axis_name
    )
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
    """KL divergence between distributions over all orders of the nearest examples.

    Also known as: DarkRank (soft), ListNet.

    ``Σ_π P_t(π) log(P_t(π) / P_s(π))`` over the permutations π of the anchor's ``list_size`` nearest examples for the
    teacher, ``P(π) = Π_k exp S_π(k) / Σ_{l ≥ k} exp S_π(l)`` with ``S_j = −α ‖x_i − x_j‖^β``. Chen, Wang & Zhang,
    "DarkRank: Accelerating Deep Metric Learning via Cross Sample Similarities Transfer", AAAI 2018, equations 3 to 7. A
    list of 4 has 24 permutations.

    Args:
      student: embeddings ``[batch, ...]``; all axes but the batch are flattened. Usually of unit length.
      teacher: embeddings of the same batch, of any feature size.
      alpha: scale of the scores.
      beta: power of the distance, positive.
      list_size: number of nearest examples that are ranked, from 1 to 6.
      where: mask, True for the examples to include ``[batch]``; masked examples are on no list.
      axis_name: a mapped axis over which the batch is split, in the order of its devices.

    Returns:
      Each anchor's share ``[batch]``. Ties are ordered as in the batch. In a small batch the list is shorter; with
      fewer than two other examples the value is 0. A distance of 0 has gradient 0.

    Raises:
      ValueError: the batches differ, an input is not floating-point ``[batch, ...]``, a hyperparameter is not positive,
        or the list has more than the 720 permutations of 6.

    >>> student, teacher = jnp.array([[0.0], [0.5], [0.8]]), jnp.array([[0.0], [2.0], [1.0]])
    >>> [round(float(x), 4) for x in darkrank_soft(student, teacher)]
    [1.4334, 0.5569, 0.2441]
    """
    expected = "a list of at most 6, which has 720 permutations (darkrank_hard takes longer ones)"
    list_size = _checks.whole("list_size", list_size, most=6, expected=f"a positive integer, {expected}")
    scores_s, scores_t, valid, where = _ranked(
        student, teacher, alpha=alpha, beta=beta, list_size=list_size, where=where, axis_name=axis_name
    )
    # A shorter list is padded at its end. The permutations that keep the padding in place are one for each order of the
    # examples; the others are excluded.
    orders = jnp.array(list(itertools.permutations(range(scores_s.shape[1]))), jnp.int32)
    fixed = jnp.all(valid[:, None, :] | (orders == jnp.arange(orders.shape[1])[None, :])[None], axis=-1)
    log_s, log_t = (_log_likelihood(scores[:, orders], valid[:, None, :]) for scores in (scores_s, scores_t))
    p_s, p_t = jnp.exp(log_s), jnp.exp(log_t)
    # Both sum to 1, so that p_s − p_t adds 0 in total. Term by term it cancels the rounding errors of the logarithms
    # and makes the gradient of a student equal to its teacher exactly 0.
    return jnp.where(where, jnp.sum(jnp.where(fixed, p_t * (log_t - log_s) - p_t + p_s, 0), axis=1), 0)


def _log_likelihood(scores: Array, valid: Array) -> Array:
    """Returns the Plackett–Luce log-likelihood of an order, valid entries first."""
    total = jnp.zeros(scores.shape[:-1], scores.dtype)
    if scores.shape[-1] == 0:  # an empty batch
        return total
    rest = scores[..., -1]
    for k in reversed(range(scores.shape[-1] - 1)):
        rest = jnp.where(valid[..., k + 1], jnp.logaddexp(scores[..., k], rest), scores[..., k])
        total = total + jnp.where(valid[..., k], scores[..., k] - rest, 0)
    return total


def _ranked(
    student: Array,
    teacher: Array,
    *,
    alpha: float | Array,
    beta: float | Array,
    list_size: int,
    where: Array | None,
    axis_name: str | None,
) -> tuple[Array, Array, Array, Array]:
    """Returns both networks' scores ``[batch, list]``, their mask, and ``where``."""
    for name, number in (("alpha", alpha), ("beta", beta)):
        _checks.positive(name, number)
    list_size = _checks.whole("list_size", list_size, expected="a positive integer")
    student, teacher, where = _pairs.inputs(student, teacher, where)
    students, teachers, every = (_numerics.gather(x, axis_name) for x in (student, teacher, where))
    other = _pairs.different(where, every, axis_name)
    nearness = jnp.where(other, -_rank_distances(teacher, teachers), -jnp.inf)
    nearness, index = jax.lax.top_k(nearness, min(list_size, len(every)))  # among equals, the first of the batch
    valid = nearness > -jnp.inf

    def scores(x: Array, among: Array) -> Array:
        squares = _squared(x[:, None, :], among[jnp.where(valid, index, 0)])
        apart = valid & (squares > 0)
        # ‖x‖^β has no derivative at 0.
        return -alpha * jnp.where(apart, jnp.where(apart, squares, 1) ** (beta / 2), 0)

    return scores(student, students), scores(teacher, teachers), valid, where


def _rank_distances(rows: Array, columns: Array) -> Array:
    """Returns squared distances ``[rows, columns]`` without a gradient, to rank by."""
    return _pairs.squared_distances(*jax.lax.stop_gradient((rows, columns)))


def _squared(x: Array, y: Array) -> Array:
    """Returns ``‖x − y‖²`` over the last axis, exactly 0 for duplicates."""
    size = jnp.sum(x**2, axis=-1) + jnp.sum(y**2, axis=-1)
    return _pairs.distinct(jnp.sum((x - y) ** 2, axis=-1), size)
