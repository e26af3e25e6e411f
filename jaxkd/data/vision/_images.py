"""Access to the images of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.types import Batch


def get_images(batch: Batch, entry: str = "image") -> jax.Array:
    """Returns the images ``[batch, height, width, channels]`` of a batch, or raises."""
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
