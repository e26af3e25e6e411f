"""Random numbers that belong to examples: the same for any number of devices, and whatever padding there is."""

from __future__ import annotations

import jax

from jaxkd import checks
from jaxkd.normalization import positions
from jaxkd.types import Array, Context


def example_keys(key: Array, context: Context, size: int) -> Array:
    """A key for each example, from one that is the same on all devices.

    >>> keys = example_keys(jax.random.key(0), Context({}, {}, {}, 0), 3)
    >>> jax.vmap(lambda k: jax.random.uniform(k, (2,)))(keys).shape
    (3, 2)
    """
    places = positions(checks.example_mask(context.batch), size, context.axis_name)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(places)
