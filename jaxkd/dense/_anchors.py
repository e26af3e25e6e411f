"""Anchors, and their matches with the objects of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks
from jaxkd.dense._boxes import box_iou, check_boxes

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Shaped


def anchors(
    image_size: tuple[int, int],
    strides: Sequence[int],
    sizes: Sequence[float] | Sequence[Sequence[float]],
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> Float[Array, "n 4"]:
    """Returns the anchor boxes of all levels of a pyramid.

    Also known as: prior boxes, default boxes.

    A level of stride s has ``ceil(height / s) × ceil(width / s)`` positions with centers ``((column + 1/2) s, (row +
    1/2) s)``. Each has an anchor for every size and ratio: of area size², and height / width = ratio. The levels are in
    the order of the strides; within a level the anchors are row by row, and within a position the sizes come before the
    ratios. This is the order of the outputs of `jaxkd.models.Detector`. Anchors may reach beyond the image.

    Args:
      image_size: height and width of the images in pixels.
      strides: pixels between neighboring positions of each level.
      sizes: sides of the square anchors of each level in pixels: one number or several for each stride, as many for
        every level.
      ratios: heights of the anchors over their widths.

    Returns:
      Boxes ``[n, 4]`` in pixels, float32.

    Raises:
      ValueError: strides and sizes do not fit each other, or a number is not positive.

    >>> anchors((4, 8), strides=[4], sizes=[4], ratios=[1.0])
    Array([[0., 0., 4., 4.],
           [4., 0., 8., 4.]], dtype=float32)
    """
    levels = [tuple(np.atleast_1d(np.asarray(size, float)).tolist()) for size in sizes]
    if not strides or len(levels) != len(strides) or len({len(level) for level in levels}) > 1:
        raise ValueError(
            f"sizes: expected one size, or the same number of sizes, for each of the strides {list(strides)}, got "
            f"{sizes}."
        )
    for name, values in (
        ("image_size", image_size),
        ("strides", strides),
        ("sizes", [size for level in levels for size in level]),
        ("ratios", ratios),
    ):
        if not len(values) or not all(value > 0 for value in values):
            raise ValueError(f"{name}: expected positive numbers, got {values}.")
    parts = []
    for stride, level in zip(strides, levels, strict=True):
        rows, columns = (math.ceil(side / stride) for side in image_size)
        y, x = np.meshgrid((np.arange(rows) + 0.5) * stride, (np.arange(columns) + 0.5) * stride, indexing="ij")
        half = np.array([(size / ratio**0.5 / 2, size * ratio**0.5 / 2) for size in level for ratio in ratios])
        center = np.stack([x, y], -1)[:, :, None]
        parts.append(np.concatenate([center - half, center + half], -1).reshape(-1, 4))
    return jnp.asarray(np.concatenate(parts), jnp.float32)


class Matches(NamedTuple):
    """The object that each of n anchors has to find.

    Attributes:
      objects: number of the object's box ``[..., n]``, without a meaning where there is none.
      matched: True for anchors with an object ``[..., n]``.
      ignored: True for anchors between object and background ``[..., n]``. The others are background.
    """

    objects: Int[Array, "*batch n"]
    matched: Bool[Array, "*batch n"]
    ignored: Bool[Array, "*batch n"]


def match_anchors(
    anchors: Float[Array, "n 4"],
    boxes: Float[Array, "*batch m 4"],
    *,
    box_where: Bool[Array, "*batch m"] | None = None,
    positive: float = 0.5,
    negative: float = 0.4,
) -> Matches:
    """Finds the object of each anchor by the overlaps of their boxes.

    An anchor has the object with which its IoU is largest if that is at least ``positive``; it is background if it is
    less than ``negative``, and ignored between the two. Besides, every object keeps one anchor, however small the
    overlap: the objects choose in the order of their largest IoU, each the free anchor with which its IoU is largest.
    Of equal overlaps, the first anchor or box is taken. An object that overlaps no anchor has none.

    Args:
      anchors: boxes ``[n, 4]``.
      boxes: the objects of each image ``[..., m, 4]``, m ≥ 1, in the same unit.
      box_where: mask, True for the boxes that exist ``[..., m]``; masked boxes may have any value.
      positive: least IoU of an anchor with its object.
      negative: IoU below which an anchor is background, at most ``positive``.

    Returns:
      `Matches` of every anchor ``[..., n]``. The number of masked boxes changes nothing.

    Raises:
      ValueError: shapes do not fit, or the thresholds are not ``0 ≤ negative ≤ positive ≤ 1``.

    >>> prior = anchors((8, 8), strides=[4], sizes=[4], ratios=[1.0])
    >>> matches = jax.jit(match_anchors)(prior, jnp.array([[4.0, 4.0, 8.0, 7.0], [0.0, 0.0, 2.0, 1.0]]))
    >>> matches.matched, matches.objects[3]
    (Array([ True, False, False,  True], dtype=bool), Array(0, dtype=int32))
    """
    if not 0 <= negative <= positive <= 1:
        raise ValueError(f"positive, negative: expected 0 <= negative <= positive <= 1, got {positive}, {negative}.")
    check_boxes("boxes", boxes)
    if anchors.ndim != 2 or anchors.shape[-1] != 4 or not anchors.shape[0]:
        raise ValueError(f"anchors: expected boxes [n, 4], n >= 1, got {checks.shape(anchors)}.")
    if not boxes.shape[-2]:
        raise ValueError(f"boxes: expected at least one row, masked or not, got {checks.shape(boxes)}.")
    box_where = jnp.ones(boxes.shape[:-1], bool) if box_where is None else box_where
    if box_where.shape != boxes.shape[:-1] or box_where.dtype != bool:
        raise ValueError(f"box_where: expected bool{list(boxes.shape[:-1])}, got {checks.shape(box_where)}.")

    def of_image(boxes: Array, exists: Array) -> tuple[Array, Array, Array]:
        overlaps = box_iou(jnp.where(exists[:, None], boxes, 0), anchors)
        most = jnp.max(overlaps, axis=0)
        index = jnp.argmax(overlaps, axis=0).astype(jnp.int32)

        def choose(owner: Array, number: Array) -> tuple[Array, None]:
            free = jnp.where(owner < 0, overlaps[number], 0)
            best = jnp.argmax(free)
            return owner.at[best].set(jnp.where(free[best] > 0, number, owner[best])), None

        order = jnp.argsort(-jnp.max(overlaps, axis=1), stable=True).astype(jnp.int32)
        # Made from the index: under shard_map, the carry of a scan must vary over the same axes as the result.
        owner, _ = jax.lax.scan(choose, index * 0 - 1, order)
        matched = ((most >= positive) & (most > 0)) | (owner >= 0)
        return jnp.where(owner >= 0, owner, index), matched, (most >= negative) & (most > 0) & ~matched

    return Matches(*jnp.vectorize(of_image, signature="(m,4),(m)->(n),(n),(n)")(boxes, box_where))


def take_matched(values: Shaped[Array, "*batch m *rest"], matches: Matches) -> Shaped[Array, "*batch n *rest"]:
    """Returns the values of the object of each anchor, such as its box or label.

    Args:
      values: values of each object ``[..., m, ...]``.
      matches: from `match_anchors`.

    Returns:
      Values of each anchor ``[..., n, ...]``, without a meaning where the anchor has no object.

    >>> matches = Matches(jnp.array([1, 0]), jnp.array([True, True]), jnp.array([False, False]))
    >>> take_matched(jnp.array([5, 7]), matches)
    Array([7, 5], dtype=int32)
    """
    axis = matches.objects.ndim - 1
    index = matches.objects.reshape(*matches.objects.shape, *(1,) * (values.ndim - axis - 1))
    return jnp.take_along_axis(values, index, axis=axis)
