"""Overlaps of boxes, and boxes as offsets from anchors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxkd._core import checks

if TYPE_CHECKING:
    from jaxtyping import Array, Float

VARIANCES = (0.1, 0.1, 0.2, 0.2)


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
        check_boxes(name, x)
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    common = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
    areas = [jnp.prod(jnp.maximum(x[..., 2:] - x[..., :2], 0), axis=-1) for x in (a, b)]
    return jnp.where(common > 0, common / jnp.where(common > 0, areas[0] + areas[1] - common, 1), 0)


def check_boxes(name: str, x: Array, form: str = "boxes [..., n, 4]") -> None:
    """Raises unless an array holds boxes, or offsets of boxes."""
    if x.ndim < 2 or x.shape[-1] != 4:
        raise ValueError(f"{name}: expected {form}, got {checks.shape(x)}.")


def encode_boxes(
    boxes: Float[Array, "*batch n 4"], anchors: Float[Array, "n 4"], *, variances: Sequence[float] = VARIANCES
) -> Float[Array, "*batch n 4"]:
    """Returns boxes as offsets from anchors.

    ``((x - x_a) / w_a, (y - y_a) / h_a, log(w / w_a), log(h / h_a))``, of centers and sides, each over its variance.
    Girshick et al., "Rich Feature Hierarchies for Accurate Object Detection and Semantic Segmentation", CVPR 2014,
    appendix C; the variances, with which offsets have a scale near 1, are those of the SSD.

    Args:
      boxes: a box for each anchor ``[..., n, 4]``.
      anchors: boxes ``[n, 4]`` in the same unit, with areas.
      variances: of the offsets of x, y, width and height.

    Returns:
      Offsets ``[..., n, 4]``, in float32 or better. A side without length has the offset 0.

    Raises:
      ValueError: shapes do not fit, or the variances are not four positive numbers.

    >>> encode_boxes(jnp.array([[2.0, 0.0, 6.0, 4.0]]), jnp.array([[0.0, 0.0, 4.0, 4.0]]))
    Array([[5., 0., 0., 0.]], dtype=float32)
    """
    boxes, anchors, scale = _paired("boxes", boxes, anchors, variances)
    center, sides = _center_and_sides(boxes)
    anchor_center, anchor_sides = _center_and_sides(anchors)
    exists = sides > 0
    stretch = jnp.where(exists, jnp.log(jnp.where(exists, sides, 1)) - jnp.log(anchor_sides), 0)
    return jnp.concatenate([(center - anchor_center) / anchor_sides, stretch], axis=-1) / scale


def decode_boxes(
    offsets: Float[Array, "*batch n 4"],
    anchors: Float[Array, "n 4"],
    *,
    variances: Sequence[float] = VARIANCES,
    max_ratio: float = 1000 / 16,
) -> Float[Array, "*batch n 4"]:
    """Returns the boxes of offsets from anchors, the inverse of `encode_boxes`.

    Args:
      offsets: predictions ``[..., n, 4]``.
      anchors: boxes ``[n, 4]``.
      variances: of the offsets of x, y, width and height.
      max_ratio: largest side of a box over that of its anchor. The exponent is cut there, so that a wild prediction of
        an untrained network stays finite.

    Returns:
      Boxes ``[..., n, 4]`` in the anchors' unit, in float32 or better. They may reach beyond the image: `clip_boxes`.

    Raises:
      ValueError: shapes do not fit, or the variances are not four positive numbers.

    >>> decode_boxes(jnp.array([[5.0, 0.0, 0.0, 0.0]]), jnp.array([[0.0, 0.0, 4.0, 4.0]]))
    Array([[2., 0., 6., 4.]], dtype=float32)
    """
    if not max_ratio >= 1:
        raise ValueError(f"max_ratio: expected at least 1, got {max_ratio}.")
    offsets, anchors, scale = _paired("offsets", offsets, anchors, variances)
    offsets = offsets * scale
    anchor_center, anchor_sides = _center_and_sides(anchors)
    center = anchor_center + offsets[..., :2] * anchor_sides
    half = anchor_sides * jnp.exp(jnp.minimum(offsets[..., 2:], math.log(max_ratio))) / 2
    return jnp.concatenate([center - half, center + half], axis=-1)


def clip_boxes(boxes: Float[Array, "*batch n 4"], image_size: tuple[int, int]) -> Float[Array, "*batch n 4"]:
    """Returns the parts of boxes that lie in the image.

    Args:
      boxes: boxes ``[..., n, 4]`` in pixels.
      image_size: height and width of the image in pixels.

    Returns:
      Boxes of the same shape; one outside of the image has no area.

    >>> clip_boxes(jnp.array([[-2.0, 1.0, 9.0, 3.0]]), (4, 8))
    Array([[0., 1., 8., 3.]], dtype=float32)
    """
    check_boxes("boxes", boxes)
    height, width = image_size
    most = jnp.array([width, height, width, height], boxes.dtype)
    return jnp.clip(boxes, 0, most.reshape(*(1,) * (boxes.ndim - 1), 4))


def _paired(
    name: str, x: Array, anchors: Array, variances: Sequence[float]
) -> tuple[Float[Array, "*batch n 4"], Float[Array, "*one n 4"], Float[Array, "*one 1 4"]]:
    """Returns boxes, anchors and variances of one rank and precision, or raises."""
    check_boxes(name, x)
    if anchors.ndim > x.ndim or anchors.shape not in (x.shape, x.shape[-2:]):
        raise ValueError(
            f"anchors: expected an anchor for each of {name} {checks.shape(x)}, got {checks.shape(anchors)}."
        )
    if len(variances) != 4 or not all(value > 0 for value in variances):
        raise ValueError(f"variances: expected four positive numbers, got {variances}.")
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, anchors.dtype), jnp.float32)
    ones = (1,) * (x.ndim - anchors.ndim)
    scale = jnp.array(variances, dtype).reshape(*(1,) * (x.ndim - 1), 4)
    return x.astype(dtype), anchors.astype(dtype).reshape(*ones, *anchors.shape), scale


def _center_and_sides(boxes: Array) -> tuple[Array, Array]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
