"""Relation losses: how the examples of a batch lie to one another.

A relation compares the geometry of a batch, so student and teacher embeddings may differ in size. Every function
returns each anchor's share, and the mean over the anchors is the published value. With ``axis_name`` the other
devices' examples take part, so that each local anchor relates to the global batch and the result does not depend on
how many devices share it.

Both relations are functions of the ``[batch, batch]`` matrix of squared distances alone: triples follow from the law
of cosines. That matrix is computed from differences, block by block, and differentiated with matrix products. Its
entries are as accurate as their own size, which the shorter ``‖a‖² + ‖b‖² − 2⟨a, b⟩`` is not: in float32 it turns
duplicates into positive distances. No ``[batch, batch, features]`` or ``[batch, batch, batch]`` array exists.

This file needs only jax and optax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Bool, Float

__all__ = ["angle_relation", "distance_relation"]

_BLOCK = 1 << 20  # elements of the largest temporary: 4 MiB in float32


def distance_relation(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features_t"],
    *,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Distance relation (RKD-D): Huber loss between pairwise distances, each over its own positive mean.

    ``ψ_ij = ‖x_i − x_j‖ / μ`` with ``μ`` the mean of the batch's positive distances; an anchor's share is
    ``mean_j huber(ψ_ij(s) − ψ_ij(t))`` with δ = 1. Park et al., "Relational Knowledge Distillation", CVPR 2019,
    equations 4 to 6. As in the authors' code, the mean runs over all B² pairs, the diagonal included, and a distance
    of 0 between duplicates is not positive and so not part of ``μ``. The published weight is 25.

    Args:
      student: embeddings ``[batch, ...]``; what follows the batch is flattened.
      teacher: embeddings of the same batch, of any feature size.
      where: True for the examples that count ``[batch]``; the others are no one's neighbour either.
      axis_name: a mapped axis over which the batch is split.

    Returns:
      Each anchor's share ``[batch]``. A batch of one, and one of duplicates, gives 0.

    Raises:
      ValueError: the batches differ, or an input is not floating-point ``[batch, ...]``.

    >>> line, square = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    >>> distance_relation(line, square).mean().round(4)
    Array(0.011, dtype=float32)
    """
    student, teacher, where = _inputs(student, teacher, where)
    every = _gather(where, axis_name)
    pair = where[:, None] & every[None, :]

    def normalized(x: Array) -> Array:
        distance = _root(jnp.where(pair, _squared_distances(x, _gather(x, axis_name)), 0))
        total, count = jnp.sum(distance), jnp.sum(distance > 0, dtype=distance.dtype)
        if axis_name is not None:
            total, count = jax.lax.psum((total, count), axis_name)
        return distance / jnp.where(total > 0, total / jnp.maximum(count, 1), 1)

    loss = optax.huber_loss(normalized(student), normalized(teacher), delta=1.0)
    return jnp.sum(loss, axis=1) / jnp.maximum(jnp.sum(every), 1)


def angle_relation(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features_t"],
    *,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Angle relation (RKD-A): Huber loss between the cosines of the angles that triples of examples form.

    ``ψ_ijk = ⟨e_ij, e_kj⟩`` with ``e_ij = n(x_i − x_j)``; the share of an anchor j, the vertex, is
    ``mean_ik huber(ψ_ijk(s) − ψ_ijk(t))`` with δ = 1. Park et al., "Relational Knowledge Distillation", CVPR 2019,
    equations 7 and 8. As in the authors' code, the mean runs over all B³ triples, and a triple in which an end
    coincides with the vertex has cosine 0. The published weight is 50.

    Computed as ``(d_ij² + d_kj² − d_ik²) / (2 d_ij d_kj)`` for one vertex at a time, and computed again in the
    backward pass, so that memory is of the order of B².

    Args:
      student: embeddings ``[batch, ...]``; what follows the batch is flattened.
      teacher: embeddings of the same batch, of any feature size.
      where: True for the examples that count ``[batch]``; the others are part of no triple.
      axis_name: a mapped axis over which the batch is split.

    Returns:
      Each vertex's share ``[batch]``. A batch of one or two, and one of duplicates, gives 0.

    Raises:
      ValueError: the batches differ, or an input is not floating-point ``[batch, ...]``.

    >>> line, square = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    >>> angle_relation(line, square).mean().round(4)
    Array(0.0434, dtype=float32)
    """
    student, teacher, where = _inputs(student, teacher, where)
    every = _gather(where, axis_name)

    def squares(x: Array) -> tuple[Array, Array]:
        """Squared distances from the local vertices to all examples, and between all examples."""
        local = _squared_distances(x, _gather(x, axis_name))
        return local, local if axis_name is None else _gather(local, axis_name)

    (from_s, among_s), (from_t, among_t) = squares(student), squares(teacher)

    # A point that does not count is put at distance 0 from every vertex: its cosines are 0 on both sides.
    pair = where[:, None] & every[None, :]
    shares = _shares(jnp.where(pair, from_s, 0), among_s, jnp.where(pair, from_t, 0), among_t)
    return shares / jnp.maximum(jnp.sum(every), 1).astype(shares.dtype) ** 2


def _cosines(to: Array, among: Array) -> tuple[Array, Array]:
    """Squared distances ``[n]`` to a vertex and ``[n, n]`` between its ends: cosines ``[n, n]``, and 1 / distances."""
    apart = to > 0
    inverse = jnp.where(apart, jax.lax.rsqrt(jnp.where(apart, to, 1)), 0)
    return 0.5 * (to[:, None] + to[None, :] - among) * inverse[:, None] * inverse[None, :], inverse


@jax.custom_vjp
def _shares(from_s: Array, among_s: Array, from_t: Array, among_t: Array) -> Array:
    """For each vertex ``[v]``, the sum over the ends i, k of the Huber loss between the cosines."""

    def share(vertex: tuple[Array, Array]) -> Array:
        to_s, to_t = vertex
        return jnp.sum(optax.huber_loss(_cosines(to_s, among_s)[0], _cosines(to_t, among_t)[0], delta=1.0))

    return jax.lax.map(share, (from_s, from_t))


def _shares_fwd(*inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return _shares(*inputs), inputs


def _shares_bwd(inputs: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
    """By hand, because the ends are interchangeable: sums over rows then do for the sums over columns too."""
    from_s, among_s, from_t, among_t = inputs

    def vertex(totals: tuple[Array, Array], row: tuple[Array, ...]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        to_s, to_t, weight = row
        (cos_s, inverse_s), (cos_t, inverse_t) = _cosines(to_s, among_s), _cosines(to_t, among_t)
        slope = weight * jnp.clip(cos_s - cos_t, -1, 1)

        def gradient(slope: Array, cosines: Array, inverse: Array) -> tuple[Array, Array]:
            legs = slope * inverse[None, :]
            d_to = inverse * jnp.sum(legs, axis=1) - inverse**2 * jnp.sum(slope * cosines, axis=1)
            return d_to, -0.5 * inverse[:, None] * legs

        (d_to_s, d_among_s), (d_to_t, d_among_t) = gradient(slope, cos_s, inverse_s), gradient(-slope, cos_t, inverse_t)
        return (totals[0] + d_among_s, totals[1] + d_among_t), (d_to_s, d_to_t)

    # Zeros made from the inputs, not fresh ones: under shard_map they vary over the same axes as what is added.
    zeros = (among_s * 0, among_t * 0)
    (d_among_s, d_among_t), (d_from_s, d_from_t) = jax.lax.scan(vertex, zeros, (from_s, from_t, cotangent))
    return d_from_s, d_among_s, d_from_t, d_among_t


_shares.defvjp(_shares_fwd, _shares_bwd)


def _squared_distances(rows: Array, columns: Array) -> Array:
    """``‖rows_i − columns_j‖²`` ``[rows, columns]``, exactly 0 for duplicates.

    A compiler may compute one example twice, once as a row and once, gathered from the other devices, as a column, and
    round differently. Its distance to itself is then tiny rather than 0, and the slope of the root there enormous.
    What the coordinates' own precision cannot tell apart is therefore the same point.
    """
    squares = _differences_squared(rows, columns)
    sizes = jnp.sum(rows**2, axis=1)[:, None] + jnp.sum(columns**2, axis=1)[None, :]
    resolution = (4 * jnp.finfo(squares.dtype).eps) ** 2 * jax.lax.stop_gradient(sizes)
    return jnp.where(squares > resolution, squares, 0)


@jax.custom_jvp
def _differences_squared(rows: Array, columns: Array) -> Array:
    def block(row: Array) -> Array:
        return jnp.sum((row[:, None, :] - columns[None, :, :]) ** 2, axis=-1)

    return _in_blocks(block, rows, size=columns.size)


@_differences_squared.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """``2 ⟨r − c, dr − dc⟩`` as four matrix products: no pair's difference is kept for the backward pass."""
    (rows, columns), (d_rows, d_columns) = primals, tangents
    squares = _differences_squared(rows, columns)
    # Distances do not see a shift; around the centre, the products below are small and so are their roundings.
    centre = jnp.mean(columns, axis=0, keepdims=True)
    rows, columns = rows - centre, columns - centre

    def inner(x: Array, y: Array) -> Array:
        return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)

    own = jnp.sum(rows * d_rows, axis=1)[:, None] + jnp.sum(columns * d_columns, axis=1)[None, :]
    return squares, 2 * (own - inner(d_rows, columns) - inner(rows, d_columns))


def _in_blocks(function: Callable[..., Array], rows: object, *, size: int) -> Array:
    """Maps ``function`` over blocks of at most half the leading rows, each row of which takes ``size`` elements."""
    count = jax.tree.leaves(rows)[0].shape[0]
    return jax.lax.map(
        lambda row: function(jax.tree.map(lambda x: x[None], row))[0],
        rows,
        batch_size=max(1, min(count // 2, _BLOCK // max(size, 1))),
    )


def _root(x: Array) -> Array:
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


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
