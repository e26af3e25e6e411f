"""Relations of distances and angles between the examples of a batch.

Both relations are functions of the ``[batch, batch]`` matrix of squared distances alone (`_pairs.squared_distances`):
the cosine of the angle at j between i and k follows from the law of cosines, ``(d_ij² + d_kj² − d_ik²) / (2 d_ij
d_kj)``.

The kernel of the angles (`_shares`) sums B³ Huber terms without a ``[batch, batch, batch]`` array. It scans over tiles
of at most 128 × 128 pairs of ends (i, k), and within a tile over groups of 16 vertices j, so that the cosines of a step
fit into a processor's cache. The ends are interchangeable: only tiles on and above the diagonal are computed, and those
above count twice. The `custom_vjp` saves the matrices of squared distances, its inputs, and nothing else; the backward
pass computes the cosines of each tile again and adds their derivatives to the gradients of the distances. Memory is of
the order of B².
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .. import _numerics
from . import _pairs

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["angle_relation", "distance_relation"]


_TILE, _GROUP = 128, 16  # ends (squared) and vertices whose cosines are computed at once


def distance_relation(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features_t"],
    *,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Huber loss between normalized pairwise distances.

    Also known as: RKD-D (relational knowledge distillation, distance-wise).

    ``ψ_ij = ‖x_i − x_j‖ / μ`` with ``μ`` the mean of the batch's positive distances; an anchor's share is ``mean_j
    huber(ψ_ij(s) − ψ_ij(t))`` with δ = 1. Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 4 to
    6. As in the authors' code, the mean runs over all B² pairs, including the diagonal, and a distance of 0 between
    duplicates is not positive and hence not in ``μ``. The published weight is 25.

    Args:
      student: embeddings ``[batch, ...]``; all axes but the batch are flattened.
      teacher: embeddings of the same batch, of any feature size.
      where: mask, True for the examples to include ``[batch]``; masked examples are neighbors of no example.
      axis_name: a mapped axis over which the batch is split.

    Returns:
      Each anchor's share ``[batch]``. A batch of one example, or of duplicates, gives 0.

    Raises:
      ValueError: the batches differ, or an input is not floating-point ``[batch, ...]``.

    >>> line, square = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    >>> distance_relation(line, square).mean().round(4)
    Array(0.011, dtype=float32)
    """
    student, teacher, where = _pairs.inputs(student, teacher, where)
    every = _numerics.gather(where, axis_name)
    pair = where[:, None] & every[None, :]

    def normalized(x: Array) -> Array:
        distance = _numerics.sqrt(jnp.where(pair, _pairs.squared_distances(x, _numerics.gather(x, axis_name)), 0))
        total, count = jnp.sum(distance), jnp.sum(distance > 0, dtype=distance.dtype)
        if axis_name is not None:
            total, count = (jax.lax.psum(x, axis_name) for x in (total, count))
        return distance / jnp.where(total > 0, total / jnp.maximum(count, 1), 1)

    loss = _numerics.huber(normalized(student) - normalized(teacher))
    return jnp.sum(loss, axis=1) / _numerics.count(every)


def angle_relation(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features_t"],
    *,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Huber loss between the cosines of the angles of triples of examples.

    Also known as: RKD-A (relational knowledge distillation, angle-wise).

    ``ψ_ijk = ⟨e_ij, e_kj⟩`` with ``e_ij = n(x_i − x_j)``; the share of an anchor j, the vertex, is ``mean_ik
    huber(ψ_ijk(s) − ψ_ijk(t))`` with δ = 1. Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 7
    and 8. As in the authors' code, the mean runs over all B³ triples, and a triple in which an end coincides with the
    vertex has cosine 0. The published weight is 50. Memory is of the order of B², as the module describes.

    Args:
      student: embeddings ``[batch, ...]``; all axes but the batch are flattened.
      teacher: embeddings of the same batch, of any feature size.
      where: mask, True for the examples to include ``[batch]``; masked examples are in no triple.
      axis_name: a mapped axis over which the batch is split.

    Returns:
      Each vertex's share ``[batch]``. A batch of one or two examples, or of duplicates, gives 0.

    Raises:
      ValueError: the batches differ, or an input is not floating-point ``[batch, ...]``.

    >>> line, square = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    >>> angle_relation(line, square).mean().round(4)
    Array(0.0434, dtype=float32)
    """
    student, teacher, where = _pairs.inputs(student, teacher, where)
    every = _numerics.gather(where, axis_name)

    def squares(x: Array) -> tuple[Array, Array]:
        """Returns squared distances from local vertices, and between all examples."""
        local = _pairs.squared_distances(x, _numerics.gather(x, axis_name))
        return local, local if axis_name is None else _numerics.gather(local, axis_name)

    (from_s, among_s), (from_t, among_t) = squares(student), squares(teacher)

    # A masked example is put at distance 0 from every vertex: its cosines are 0 in both networks.
    pair = where[:, None] & every[None, :]
    shares = _shares(jnp.where(pair, from_s, 0), among_s, jnp.where(pair, from_t, 0), among_t)
    return shares / _numerics.count(every, dtype=shares.dtype) ** 2


@jax.custom_vjp
def _shares(from_s: Array, among_s: Array, from_t: Array, among_t: Array) -> Array:
    """Returns the sum over the ends i, k of the Huber loss between cosines, ``[v]``.

    The inputs are squared distances ``[v, n]`` from the vertices to the ends and ``[n, n]`` among the ends.
    """
    if from_s.size == 0:
        return jnp.sum(from_s, axis=1)
    student, teacher = _padded(from_s, among_s), _padded(from_t, among_t)

    def add(total: Array, corner: Array) -> tuple[Array, None]:
        (ends_s, *legs_s), (ends_t, *legs_t) = _tile(student, corner), _tile(teacher, corner)

        def group(legs: tuple[Array, ...]) -> Array:
            i_s, k_s, i_t, k_t = legs
            (cos_s, *_), (cos_t, *_) = _cosines(i_s, k_s, ends_s), _cosines(i_t, k_t, ends_t)
            return jnp.sum(_numerics.huber(cos_s - cos_t), axis=(1, 2))

        return total + jnp.where(corner[0] == corner[1], 1, 2) * jax.lax.map(group, (*legs_s, *legs_t)), None

    # Zeros made from the inputs: under shard_map, the carry of a scan must vary over the same axes as the result.
    total, _ = jax.lax.scan(add, student[0][:, :, 0] * 0, _corners(student[1]))
    return total.reshape(-1)[: len(from_s)]


def _shares_fwd(*inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return _shares(*inputs), inputs


def _shares_bwd(inputs: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
    """Computes the cosines again, one tile at a time."""
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
            slope = weight[:, None, None] * jnp.clip(of_s[0] - of_t[0], -1, 1)  # the derivative of the Huber loss
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
    """Returns cosines ``[v, i, k]`` and 1 / distances ``[v, i]`` and ``[v, k]``."""
    inverse_i, inverse_k = (jnp.where(to > 0, jax.lax.rsqrt(jnp.where(to > 0, to, 1)), 0) for to in (rows, columns))
    doubled = rows[:, :, None] + columns[:, None, :] - among[None]
    return 0.5 * doubled * inverse_i[:, :, None] * inverse_k[:, None, :], inverse_i, inverse_k


def _gradient(slope: Array, cosines: Array, inverse_i: Array, inverse_k: Array) -> tuple[Array, Array, Array]:
    """Returns twice the gradients for distances ``[i, k]``, ``[v, i]`` and ``[v, k]``."""
    legs_i = inverse_i * _numerics.einsum("vik,vk->vi", slope, inverse_k)
    legs_k = inverse_k * _numerics.einsum("vik,vi->vk", slope, inverse_i)
    turned = slope * cosines
    return (
        -jnp.sum(slope * inverse_i[:, :, None] * inverse_k[:, None, :], axis=0),
        legs_i - inverse_i**2 * jnp.sum(turned, axis=2),
        legs_k - inverse_k**2 * jnp.sum(turned, axis=1),
    )


def _tile_size(ends: int) -> int:
    """Returns the side of a tile, at most `_TILE`: equal tiles need the least padding."""
    return -(-ends // -(-ends // _TILE))


def _padded(to: Array, among: Array) -> tuple[Array, Array]:
    """Returns whole groups of vertices and whole tiles; padding has cosine 0."""
    vertices, ends = to.shape
    members, more = min(vertices, _GROUP), -ends % _tile_size(ends)
    to = jnp.pad(to, ((0, -vertices % members), (0, more)))
    return to.reshape(len(to) // members, members, ends + more), jnp.pad(among, (0, more))


def _corners(among: Array) -> Array:
    """Returns the corners of the tiles on and above the diagonal ``[tiles, 2]``."""
    starts = range(0, len(among), _tile_size(len(among)))
    return jnp.array([(row, column) for row in starts for column in starts if row <= column])


def _tile(network: tuple[Array, Array], corner: Array) -> tuple[Array, Array, Array]:
    """Returns a tile's distances among its ends, and from all vertices to its ends."""
    to, among = network
    size = _tile_size(len(among))
    rows, columns = (jax.lax.dynamic_slice_in_dim(to, start, size, axis=2) for start in corner)
    return jax.lax.dynamic_slice(among, corner, (size, size)), rows, columns


def _put(total: tuple[Array, Array], ends: Array, legs: tuple[Array, ...], corner: Array) -> tuple[Array, Array]:
    """Adds a tile's gradients to those of all distances."""
    to, among = total
    for start, leg in zip(corner, legs, strict=True):
        here = jax.lax.dynamic_slice_in_dim(to, start, leg.shape[2], axis=2)
        to = jax.lax.dynamic_update_slice_in_dim(to, here + leg, start, axis=2)
    return to, jax.lax.dynamic_update_slice(among, ends, corner)
