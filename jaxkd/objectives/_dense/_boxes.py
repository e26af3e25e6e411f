"""Boxes of a batch in the units of a map."""

from __future__ import annotations

import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd._core.batches import lookup
from jaxkd.types import Array, Context


def pixels_per_cell(context: Context, image_path: str, height: int, width: int) -> tuple[float, float]:
    """Returns the height and the width of a map's cell in pixels of the image.

    >>> context = Context({}, {}, {"image": jnp.zeros((1, 60, 80, 3))}, 0)
    >>> pixels_per_cell(context, "batch/image", 15, 20)
    (4.0, 4.0)
    """
    image = lookup(context, image_path)
    if len(image.shape) != 4:
        raise ValueError(f"{image_path}: expected images [batch, height, width, channels], got {checks.shape(image)}.")
    return image.shape[1] / height, image.shape[2] / width


def in_cells(context: Context, boxes_path: str, image_path: str, height: int, width: int) -> Array:
    """Returns the boxes at a path, in pixels of the image, in cells of a map."""
    rows, columns = pixels_per_cell(context, image_path, height, width)
    boxes = lookup(context, boxes_path)
    if len(boxes.shape) != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"{boxes_path}: expected boxes [batch, n, 4], got {checks.shape(boxes)}.")
    return boxes / jnp.array([[[columns, rows, columns, rows]]], jnp.float32)
