"""Rows of training examples in an objective's state."""

from __future__ import annotations

import jax.numpy as jnp

from jaxkd.types import Array


def row_index(index: Array, where: Array, size: int) -> Array:
    """Row indices as int32: 0 for a masked example, ``size`` for a negative index.

    Indexing would count a negative index from the end; ``size`` is out of range, like any other invalid index.
    """
    index = index.astype(jnp.int32)  # before `size`, which a narrower type might not hold
    return jnp.where(where, jnp.where(index < 0, size, index), 0)


def write_index(index: Array, where: Array, size: int) -> Array:
    """Returns the row that each example writes, or ``size``, out of range, for none.

    A masked example writes nothing. Of an example that occurs several times in the batch, only the last occurrence
    writes: the order of a scatter with duplicate indices depends on the hardware.
    """
    order = jnp.arange(len(index))
    later = order[:, None] < order[None, :]
    rewritten = jnp.any(later & where[None, :] & (index[:, None] == index[None, :]), axis=1)
    return jnp.where(where & ~rewritten, index, size)
