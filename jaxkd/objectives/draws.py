"""Random numbers that belong to examples: the same for any number of devices, and whatever padding there is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import checks
from jaxkd.types import Array, Context


def positions(context: Context, size: int) -> Array:
    """Where each example stands among those of the global batch that count.

    Args:
      context: what an objective may read: of it the mask and the mapped axis.
      size: the number of examples here.

    Returns:
      int32 ``[size]``, counted over the devices in their order. What an example that does not count gets has no
      meaning, and is not negative.

    >>> mask = jnp.array([True, False, True])
    >>> positions(Context({}, {}, {"mask": mask}, 0), 3)
    Array([0, 0, 1], dtype=int32)
    """
    mask = checks.example_mask(context.batch)
    keep = jnp.ones(size, bool) if mask is None else mask
    here = jnp.maximum(jnp.cumsum(keep, dtype=jnp.int32) - 1, 0)
    if context.axis_name is None:
        return here
    counts = jax.lax.all_gather(jnp.sum(keep, dtype=jnp.int32), context.axis_name)
    before = jnp.arange(counts.shape[0]) < jax.lax.axis_index(context.axis_name)
    return here + jnp.sum(jnp.where(before, counts, 0))


def example_keys(key: Array, context: Context, size: int) -> Array:
    """A key for each example, from one that is the same on all devices.

    >>> keys = example_keys(jax.random.key(0), Context({}, {}, {}, 0), 3)
    >>> jax.vmap(lambda k: jax.random.uniform(k, (2,)))(keys).shape
    (3, 2)
    """
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions(context, size))
