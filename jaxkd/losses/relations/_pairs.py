"""Inputs of relations, and squared distances between the examples of a batch.

Squared distances are computed from differences, block by block, and differentiated with matrix products. Their entries
are accurate relative to their own size, unlike those of the shorter ``‖a‖² + ‖b‖² − 2⟨a, b⟩``, which in float32 turns
duplicates into positive distances. No ``[batch, batch, features]`` array exists in either direction.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .. import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array


BLOCK = 1 << 20  # elements of the largest temporary: 4 MiB in float32


def inputs(student: Any, teacher: Any, where: Any) -> tuple[Array, Array, Array]:
    """Returns upcast ``[batch, features]``, 0 for masked examples, and the mask."""
    form = "embeddings [batch, ...]"
    student, teacher = (
        _checks.floating(name, x, form, least_rank=2) for name, x in (("student", student), ("teacher", teacher))
    )
    _checks.same_batch(student, teacher)
    where = _checks.mask_or_ones(where, student.shape[:1])
    student, teacher = (flat(x) for x in _numerics.mask_inputs(where, student, teacher))
    return student, teacher, where


def flat(x: Array) -> Array:
    """Returns ``[batch, features]``, also of an empty batch."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def different(where: Array, every: Array, axis_name: str | None) -> Array:
    """Returns the mask ``[local, batch]`` of pairs of two different included examples."""
    own = _numerics.local_rows(len(where), axis_name)
    return where[:, None] & every[None, :] & (own[:, None] != jnp.arange(len(every))[None, :])


def distinct(squares: Array, size: Array) -> Array:
    """Returns squared distances, 0 where they are rounding errors of the coordinates.

    ``size`` is the sum of the squared norms of both examples. A compiler may compute one example twice, once as a row
    and once, gathered from the other devices, as a column, and round differently. Its distance to itself is then tiny
    rather than 0, and the derivative of the root there enormous.
    """
    resolution = (4 * jnp.finfo(squares.dtype).eps) ** 2 * jax.lax.stop_gradient(size)
    return jnp.where(squares > resolution, squares, 0)


def squared_distances(rows: Array, columns: Array) -> Array:
    """Returns ``‖rows_i − columns_j‖²`` ``[rows, columns]``, exactly 0 for duplicates."""
    size = jnp.sum(rows**2, axis=1)[:, None] + jnp.sum(columns**2, axis=1)[None, :]
    return distinct(_differences_squared(rows, columns), size)


@jax.custom_jvp
def _differences_squared(rows: Array, columns: Array) -> Array:
    def one(row: Array) -> Array:
        return jnp.sum((row[None, :] - columns) ** 2, axis=-1)

    return jax.lax.map(one, rows, batch_size=max(1, min(len(rows) // 2, BLOCK // max(columns.size, 1))))


@_differences_squared.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """``2 ⟨r − c, dr − dc⟩`` as matrix products: no pair's difference is kept."""
    (rows, columns), (d_rows, d_columns) = primals, tangents
    squares = _differences_squared(rows, columns)
    # A shift cancels in the distances. Around the center, the products below and their rounding errors are small.
    center = jnp.mean(columns, axis=0, keepdims=True)
    rows, columns = rows - center, columns - center
    own = jnp.sum(rows * d_rows, axis=1)[:, None] + jnp.sum(columns * d_columns, axis=1)[None, :]
    return squares, 2 * (own - inner(d_rows, columns) - inner(rows, d_columns))


def inner(rows: Array, columns: Array) -> Array:
    """Returns the inner products ``[rows, columns]`` in full precision."""
    return jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
