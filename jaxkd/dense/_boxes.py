"""Overlaps of boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxkd._core import checks

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def box_iou(boxes: Float[Array, "*batch n 4"], others: Float[Array, "*batch m 4"]) -> Float[Array, "*batch n m"]:
    """Returns the intersection over union of all pairs of boxes.

    Args:
      boxes: boxes ``[..., n, 4]``.
      others: boxes ``[..., m, 4]``, in the same unit.

    Returns:
      Overlaps from 0 to 1 ``[..., n, m]``; those of a box without area are 0.

    Raises:
      ValueError: an array does not hold boxes.

    >>> box_iou(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 2.0, 1.0], [2.0, 0.0, 3.0, 1.0]]))
    Array([[0.5, 0. ]], dtype=float32)
    """
    for name, x in (("boxes", boxes), ("others", others)):
        if x.ndim < 2 or x.shape[-1] != 4:
            raise ValueError(f"{name}: expected boxes [..., n, 4], got {checks.shape(x)}.")
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    common = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
    areas = [jnp.prod(jnp.maximum(x[..., 2:] - x[..., :2], 0), axis=-1) for x in (a, b)]
    return jnp.where(common > 0, common / jnp.where(common > 0, areas[0] + areas[1] - common, 1), 0)
