"""A relation that several teachers vote on: which of two examples is the nearer one to a third.

The teachers' features may all differ in size, and from the student's, since only the order of their distances counts.
The function returns each anchor's share, and the mean over the anchors is the published value. With ``axis_name`` the
other devices' examples are part of the triplets too, so that the result does not depend on how many devices share the
batch.

Distances are ``[batch, batch]``, computed from differences and block by block. Votes and hinges of the triplets exist
for a block of them only; what is kept for the backward pass is how often each distance occurs in a triplet that pays.

This file needs only jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Array, Bool, Float

__all__ = ["voted_dissimilarity"]

_BLOCK = 1 << 20  # elements of the largest temporary: 4 MiB in float32


def voted_dissimilarity(
    student: Float[Array, "batch *features"],
    teachers: Sequence[Float[Array, "batch *features_t"]] | Float[Array, "batch *features_t"],
    *,
    margin: float | Float[Array, ""] = 1.0,
    weights: Sequence[float] | Float[Array, " teachers"] | None = None,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Voted relative dissimilarity: ``max(0, ‖s_i − s_j‖² − ‖s_i − s_k‖² + δ)`` where the teachers have j nearer to i.

    Each teacher m says which of two examples is the less dissimilar one to an anchor, ``sign(‖t_i − t_k‖² −
    ‖t_i − t_j‖²)`` in its own feature. The vote of the triplet (i, j, k) is the sum of that over the teachers, by their
    weights, and the student is to have the order of the majority by a margin δ. You, Xu, Xu & Tao, "Learning from
    Multiple Teacher Networks", KDD 2017. Of the batch, every triplet of distinct examples counts on which
    the vote is not tied; the value is the mean over these. A teacher with equal distances does not vote.

    The margin is in units of the student's squared distances: it goes with features of about unit length, and the
    default of 1 is that of this library. Only the order of the teachers matters, so they have no gradient.

    Args:
      student: features ``[batch, ...]``; what follows the batch is flattened.
      teachers: those of the same batch of each teacher, of any feature sizes; one array is one teacher.
      margin: δ.
      weights: of the teachers' votes, one for each and not negative; equal ones by default.
      where: True for the examples that count ``[batch]``; the others are in no triplet.
      axis_name: a mapped axis over which the batch is split, in the order of its devices.

    Returns:
      Each anchor's share ``[batch]``: the sum over its triplets, times the number of anchors by that of all triplets.
      With fewer than three examples, and where all votes are tied, it is 0.

    Raises:
      ValueError: there are no teachers, the batches differ, an input is not floating-point ``[batch, ...]``, the
        weights do not fit, or the margin is negative.

    >>> student = jnp.array([[0.0], [3.0], [1.0]])
    >>> teachers = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [2.0], [5.0]]), jnp.array([[0.0], [5.0], [1.0]])
    >>> voted_dissimilarity(student, teachers)
    Array([13.5,  0. ,  6. ], dtype=float32)
    """
    if not isinstance(margin, jax.core.Tracer) and not margin >= 0:  # NaN is not
        raise ValueError(f"margin: expected a number that is not negative, got {margin}.")
    student, teachers, where = _inputs(student, teachers, where)
    votes = _weights(weights, len(teachers)).astype(student.dtype)
    every = _gather(where, axis_name)
    batch, size = len(where), len(every)
    own = jnp.arange(batch) + (0 if axis_name is None else jax.lax.axis_index(axis_name) * batch)
    other = where[:, None] & every[None, :] & (own[:, None] != jnp.arange(size)[None, :])

    def to_all(x: Array) -> Array:
        return _squared_distances(x, _gather(x, axis_name))

    froms = tuple(to_all(jax.lax.stop_gradient(x)) for x in teachers)
    total, count = _triplets(to_all(student), jnp.asarray(margin, student.dtype), froms, votes, other)
    every_triplet, anchors = jnp.sum(count), jnp.sum(every, dtype=total.dtype)
    if axis_name is not None:
        every_triplet = jax.lax.psum(every_triplet, axis_name)
    return total * (anchors / jnp.maximum(every_triplet, 1))


@jax.custom_jvp
def _triplets(
    from_s: Array, margin: Array, from_t: tuple[Array, ...], votes: Array, other: Array
) -> tuple[Array, Array]:
    """Of each anchor ``[v]``: the sum over its triplets, and their number; from squared distances ``[v, n]``."""
    total, count, _, _ = _sums(from_s, margin, from_t, votes, other)
    return total, count


@_triplets.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The sum is piecewise linear in distances and margin: its slopes are numbers of triplets that pay."""
    total, count, slope, paying = _sums(*primals)
    change = jnp.sum(slope * tangents[0], axis=1) + paying * tangents[1]
    return (total, count), (change, jnp.zeros_like(count))


def _sums(
    from_s: Array, margin: Array, from_t: tuple[Array, ...], votes: Array, other: Array
) -> tuple[Array, Array, Array, Array]:
    """Sums ``[v]``, numbers of triplets ``[v]``, slopes ``[v, n]``, numbers of the triplets that pay ``[v]``."""
    size, dtype = from_s.shape[1], from_s.dtype
    if from_s.size == 0:
        nothing = jnp.sum(from_s, axis=1)
        return nothing, nothing, from_s, nothing
    rows = max(1, min(size // 2, _BLOCK // size))
    resolution = 16 * jnp.finfo(dtype).eps

    def of_anchor(anchor: tuple[Array, tuple[Array, ...], Array]) -> tuple[Array, ...]:
        own, taught, counted = anchor

        def of_end(j: Array) -> tuple[Array, ...]:
            """All triplets of which j is one end: those in which it is to be the nearer one are summed."""
            vote: Any = 0
            for weight, to in zip(votes, taught, strict=True):
                # What differs in its last bits only may be the same distance, computed on another device.
                gap = to - to[j]
                vote = vote + weight * jnp.where(jnp.abs(gap) > resolution * (to + to[j]), jnp.sign(gap), 0)
            vote = jnp.where(counted & counted[j], vote, 0)
            tie = resolution * jnp.sum(votes)  # as of 0.1 + 0.2 against 0.3
            nearer, farther = vote > tie, vote < -tie
            hinge = own[j] - own + margin
            pays = nearer & (hinge > 0)
            slope = jnp.sum(pays, dtype=dtype) - jnp.sum(farther & (own - own[j] + margin > 0), dtype=dtype)
            total = jnp.sum(jnp.where(pays, hinge, 0))
            return total, jnp.sum(nearer, dtype=dtype), slope, jnp.sum(pays, dtype=dtype)

        total, count, slope, paying = jax.lax.map(of_end, jnp.arange(size), batch_size=rows)
        return jnp.sum(total), jnp.sum(count), slope, jnp.sum(paying)

    # A quarter of the anchors by half of the ends: never more than an eighth of a device's triplets at once.
    anchors = max(1, min(len(from_s) // 4, _BLOCK // (rows * size)))
    total, count, slope, paying = jax.lax.map(of_anchor, (from_s, from_t, other), batch_size=anchors)
    return total, count, slope, paying


def _squared_distances(rows: Array, columns: Array) -> Array:
    """``‖rows_i − columns_j‖²`` ``[rows, columns]``, 0 for what the coordinates' precision cannot tell apart."""
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


def _in_blocks(function: Callable[..., Array], rows: Array, *, size: int) -> Array:
    """Maps ``function`` over blocks of at most half the leading rows, each row of which takes ``size`` elements."""
    return jax.lax.map(
        lambda row: function(row[None])[0], rows, batch_size=max(1, min(len(rows) // 2, _BLOCK // max(size, 1)))
    )


def _gather(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def _weights(weights: Any, teachers: int) -> Array:
    if weights is None:
        return jnp.ones(teachers)
    found = jnp.asarray(weights)
    got = f"shape {list(found.shape)}"
    fits = found.shape == (teachers,)
    if fits and not any(isinstance(w, jax.core.Tracer) for w in jax.tree.leaves(weights)):
        values = [float(value) for value in jax.device_get(weights)]  # nothing of it is traced
        fits, got = all(math.isfinite(value) and value >= 0 for value in values), str(values)
    if not fits:
        raise ValueError(f"weights: expected a number that is not negative for each of {teachers} teachers, got {got}.")
    return found


def _inputs(student: Any, teachers: Any, where: Any) -> tuple[Array, tuple[Array, ...], Array]:
    teachers = tuple(teachers) if isinstance(teachers, tuple | list) else (teachers,)
    if not teachers:
        raise ValueError("teachers: expected the features of at least one teacher, got none.")
    named = {"student": jnp.asarray(student)} | {f"teachers[{i}]": jnp.asarray(x) for i, x in enumerate(teachers)}
    for name, x in named.items():
        if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 2:
            raise ValueError(f"{name}: expected floating-point features [batch, ...], got {x.dtype}{list(x.shape)}.")
    batch = named["student"].shape[0]
    for name, x in named.items():
        if x.shape[0] != batch:
            raise ValueError(f"{name}: expected the student's batch of {batch}, got {x.dtype}{list(x.shape)}.")
    where = jnp.ones(batch, bool) if where is None else jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != (batch,):
        raise ValueError(f"where: expected bool[{batch}], True for what counts, got {where.dtype}{list(where.shape)}.")
    dtype = jnp.result_type(jnp.float32, *named.values())
    student, *others = (
        jnp.where(where[:, None], x.reshape(batch, math.prod(x.shape[1:])), 0).astype(dtype) for x in named.values()
    )
    return student, tuple(others), where
