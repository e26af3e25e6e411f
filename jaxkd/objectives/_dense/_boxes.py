"""Boxes of a batch in the units of a map."""

from __future__ import annotations

import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd._core.batches import lookup
from jaxkd.types import Array, Context


def in_cells(context: Context, boxes_path: str, image_path: str, height: int, width: int) -> Array:
    """Returns the boxes at a path, in pixels of the image, in cells of a map.

    >>> batch = {"image": jnp.zeros((1, 60, 80, 3)), "boxes": jnp.array([[[0.0, 30.0, 40.0, 60.0]]])}
    >>> in_cells(Context({}, {}, batch, 0), "batch/boxes", "batch/image", 4, 8)
    Array([[[0., 2., 4., 4.]]], dtype=float32)
    """
    image, boxes = lookup(context, image_path), lookup(context, boxes_path)
    if len(image.shape) != 4:
        raise ValueError(f"{image_path}: expected images [batch, height, width, channels], got {checks.shape(image)}.")
    if len(boxes.shape) != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"{boxes_path}: expected boxes [batch, n, 4], got {checks.shape(boxes)}.")
    rows, columns = height / image.shape[1], width / image.shape[2]
    return boxes * jnp.array([[[columns, rows, columns, rows]]], jnp.float32)
