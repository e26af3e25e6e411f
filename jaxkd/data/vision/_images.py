"""Access to the images of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.types import Batch


def get_images(batch: Batch, entry: str = "image") -> jax.Array:
    """Returns the images of a batch, or raises if the entry holds none.

    Args:
      batch: batch with images ``[batch, height, width, channels]``.
      entry: name of the entry.

    Raises:
      ValueError: the batch has no such entry, or it does not have four axes.
    """
    if entry not in batch:
        raise ValueError(
            f"batch: expected images [batch, height, width, channels] as {entry!r}, got entries {sorted(batch)}."
        )
    image = jnp.asarray(batch[entry])
    if image.ndim != 4:
        raise ValueError(
            f"{entry}: expected [batch, height, width, channels], got {image.dtype}{list(image.shape)}. Under vmap a "
            "batch has no further leading axis."
        )
    return image
