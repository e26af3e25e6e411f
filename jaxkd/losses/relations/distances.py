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
_TILE, _GROUP = 128, 16  # ends (squared) and vertices whose cosines are computed at once, within a processor's cache


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

    Computed as ``(d_ij² + d_kj² − d_ik²) / (2 d_ij d_kj)`` for a block of triples at a time, and computed again in
    the backward pass, so that memory is of the order of B².

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


@jax.custom_vjp
def _shares(from_s: Array, among_s: Array, from_t: Array, among_t: Array) -> Array:
    """For each vertex ``[v]``, the sum over the ends i, k of the Huber loss between the cosines.

    Of squared distances ``[v, n]`` from the vertices to the ends and ``[n, n]`` among the ends. The ends are
    interchangeable, so that a tile of them above the diagonal does for the one below it too.
    """
    if from_s.size == 0:
        return jnp.sum(from_s, axis=1)
    student, teacher = _padded(from_s, among_s), _padded(from_t, among_t)

    def add(total: Array, corner: Array) -> tuple[Array, None]:
        (ends_s, *legs_s), (ends_t, *legs_t) = _tile(student, corner), _tile(teacher, corner)

        def group(legs: tuple[Array, ...]) -> Array:
            i_s, k_s, i_t, k_t = legs
            (cos_s, *_), (cos_t, *_) = _cosines(i_s, k_s, ends_s), _cosines(i_t, k_t, ends_t)
            return jnp.sum(optax.huber_loss(cos_s, cos_t, delta=1.0), axis=(1, 2))

        return total + jnp.where(corner[0] == corner[1], 1, 2) * jax.lax.map(group, (*legs_s, *legs_t)), None

    # Zeros made from the inputs, not fresh ones: under shard_map they vary over the same axes as what is added.
    total, _ = jax.lax.scan(add, student[0][:, :, 0] * 0, _corners(student[1]))
    return total.reshape(-1)[: len(from_s)]


def _shares_fwd(*inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return _shares(*inputs), inputs


def _shares_bwd(inputs: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
    """By hand: the cosines are computed again, a tile at a time, and none is kept."""
    from_s, among_s, from_t, among_t = inputs
    if from_s.size == 0:
        return tuple(x * 0 for x in inputs)
    student, teacher = _padded(from_s, among_s), _padded(from_t, among_t)
    groups, members, _ = student[0].shape
    cotangent = jnp.pad(cotangent, (0, groups * members - len(cotangent))).reshape(groups, members)

    def add(totals: tuple[tuple[Array, Array], ...], corner: Array) -> tuple[tuple[tuple[Array, Array], ...], None]:
        (ends_s, *legs_s), (ends_t, *legs_t) = _tile(student, corner), _tile(teacher, corner)
        weights = cotangent * jnp.where(corner[0] == corner[1], 0.5, 1)

        def group(d_ends: tuple[Array, Array], row: tuple[Array, ...]) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
            i_s, k_s, i_t, k_t, weight = row
            of_s, of_t = _cosines(i_s, k_s, ends_s), _cosines(i_t, k_t, ends_t)
            slope = weight[:, None, None] * jnp.clip(of_s[0] - of_t[0], -1, 1)
            (d_ends_s, *d_legs_s), (d_ends_t, *d_legs_t) = _gradient(slope, *of_s), _gradient(-slope, *of_t)
            return (d_ends[0] + d_ends_s, d_ends[1] + d_ends_t), (*d_legs_s, *d_legs_t)

        d_ends, d_legs = jax.lax.scan(group, (ends_s * 0, ends_t * 0), (*legs_s, *legs_t, weights))
        both = zip(totals, d_ends, (d_legs[:2], d_legs[2:]), strict=True)
        return tuple(_put(total, ends, legs, corner) for total, ends, legs in both), None

    zeros = jax.tree.map(lambda x: x * 0, (student, teacher))
    totals, _ = jax.lax.scan(add, zeros, _corners(student[1]))
    (d_from_s, d_among_s), (d_from_t, d_among_t) = (
        (d_from.reshape(groups * members, -1)[: len(from_s), : len(among_s)], d_among[: len(among_s), : len(among_s)])
        for d_from, d_among in totals
    )
    return d_from_s, d_among_s, d_from_t, d_among_t


_shares.defvjp(_shares_fwd, _shares_bwd)


def _cosines(rows: Array, columns: Array, among: Array) -> tuple[Array, Array, Array]:
    """Squared distances ``[v, i]``, ``[v, k]`` to vertices, ``[i, k]`` between ends: cosines, and 1 / distances."""
    inverse_i, inverse_k = (jnp.where(to > 0, jax.lax.rsqrt(jnp.where(to > 0, to, 1)), 0) for to in (rows, columns))
    doubled = rows[:, :, None] + columns[:, None, :] - among[None]
    return 0.5 * doubled * inverse_i[:, :, None] * inverse_k[:, None, :], inverse_i, inverse_k


def _gradient(slope: Array, cosines: Array, inverse_i: Array, inverse_k: Array) -> tuple[Array, Array, Array]:
    """Twice that of `_cosines`, with respect to the squared distances: between the ends, and to the vertices."""
    precision = jax.lax.Precision.HIGHEST
    legs_i = inverse_i * jnp.einsum("vik,vk->vi", slope, inverse_k, precision=precision)
    legs_k = inverse_k * jnp.einsum("vik,vi->vk", slope, inverse_i, precision=precision)
    turned = slope * cosines
    return (
        -jnp.sum(slope * inverse_i[:, :, None] * inverse_k[:, None, :], axis=0),
        legs_i - inverse_i**2 * jnp.sum(turned, axis=2),
        legs_k - inverse_k**2 * jnp.sum(turned, axis=1),
    )


def _tile_size(ends: int) -> int:
    return -(-ends // -(-ends // _TILE))


def _padded(to: Array, among: Array) -> tuple[Array, Array]:
    """Whole groups of vertices ``[groups, members, ends]`` and whole tiles; an end at distance 0 has cosine 0."""
    vertices, ends = to.shape
    members, more = min(vertices, _GROUP), -ends % _tile_size(ends)
    to = jnp.pad(to, ((0, -vertices % members), (0, more)))
    return to.reshape(len(to) // members, members, ends + more), jnp.pad(among, (0, more))


def _corners(among: Array) -> Array:
    """Of the tiles on and above the diagonal ``[tiles, 2]``."""
    starts = range(0, len(among), _tile_size(len(among)))
    return jnp.array([(row, column) for row in starts for column in starts if row <= column])


def _tile(network: tuple[Array, Array], corner: Array) -> tuple[Array, Array, Array]:
    """The distances between its ends, and those of the ends in its rows and in its columns to all vertices."""
    to, among = network
    size = _tile_size(len(among))
    rows, columns = (jax.lax.dynamic_slice_in_dim(to, start, size, axis=2) for start in corner)
    return jax.lax.dynamic_slice(among, corner, (size, size)), rows, columns


def _put(total: tuple[Array, Array], ends: Array, legs: tuple[Array, ...], corner: Array) -> tuple[Array, Array]:
    to, among = total
    for start, leg in zip(corner, legs, strict=True):
        here = jax.lax.dynamic_slice_in_dim(to, start, leg.shape[2], axis=2)
        to = jax.lax.dynamic_update_slice_in_dim(to, here + leg, start, axis=2)
    return to, jax.lax.dynamic_update_slice(among, ends, corner)


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
