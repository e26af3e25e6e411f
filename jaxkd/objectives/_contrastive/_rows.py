"""Rows of training examples in an objective's state."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.types import Array


def gather(x: Array, axis_name: str | None) -> Array:
    """Gathers the rows of all devices, in the order of the mapped axis.

    Each device adds its rows, at their place, to zeros. Unlike `jax.lax.all_gather`, a sum lets a checked
    `jax.shard_map` infer that all devices hold the same result, as replicated state requires.
    """
    if axis_name is None:
        return x
    size = x.shape[0]
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.int32
    whole = jnp.zeros((jax.lax.axis_size(axis_name) * size, *x.shape[1:]), dtype)
    start = (jax.lax.axis_index(axis_name) * size,) + (0,) * (x.ndim - 1)
    return jax.lax.psum(jax.lax.dynamic_update_slice(whole, x.astype(dtype), start), axis_name).astype(x.dtype)


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
