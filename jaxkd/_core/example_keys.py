"""Random numbers of examples, independent of padding and of the number of devices."""

from __future__ import annotations

import jax

from jaxkd._core import batches
from jaxkd._core.axes import positions
from jaxkd.types import Array, Context


def example_keys(key: Array, context: Context, size: int) -> Array:
    """Derives a key for each of ``size`` examples from a key shared by all devices.

    >>> keys = example_keys(jax.random.key(0), Context({}, {}, {}, 0), 3)
    >>> jax.vmap(lambda k: jax.random.uniform(k, (2,)))(keys).shape
    (3, 2)
    """
    # Folding in the position among the unmasked examples of all devices makes the keys of a sharded or padded batch
    # those of the whole, unpadded one.
    places = positions(batches.example_mask(context.batch), size, context.axis_name)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(places)
