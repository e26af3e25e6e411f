"""Image, mask, boxes and points of one example, moved by an affine map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks
from jaxkd.types import Array, Batch

ENTRIES = ("image", "label", "boxes", "box_label", "box_mask", "points", "point_mask")
"""Entries of a batch that move with the image."""

_VOID = 255
_EDGE = 1e-3
"""Pixels by which rounding may move a box or a point across the image's edge."""


class Sources(NamedTuple):
    """Coordinates in the old image from which the centers of the new pixels come.

    Attributes:
      x: int32 ``[height, width]``, fixed point.
      y: of the same form.
      bits: number of fraction bits.
    """

    x: Array
    y: Array
    bits: int


class Forward(NamedTuple):
    """A map in floating point: ``p -> matrix p + offset``, by numbers.

    Explicit sums, because a matrix product may round to fewer bits.
    """

    matrix: tuple[tuple[Array, Array], ...]
    offset: tuple[Array, ...]

    def __call__(self, points: Array) -> Array:
        """Moves points ``[n, 2]``."""
        x, y = points[:, 0].astype(jnp.float32), points[:, 1].astype(jnp.float32)
        return jnp.stack([a * x + b * y + t for (a, b), t in zip(self.matrix, self.offset, strict=True)], axis=-1)


def moving(batch: Batch) -> dict[str, Array]:
    """Returns the entries of a batch that move with its images, with all masks.

    Raises:
      ValueError: an entry has another shape or type than `jaxkd.data.dense` says.
    """
    found = {name: jnp.asarray(batch[name]) for name in ENTRIES if name in batch}
    size, height, width = found["image"].shape[:3]
    if not jnp.issubdtype(found["image"].dtype, jnp.floating) and found["image"].dtype not in (jnp.uint8, jnp.uint16):
        raise ValueError(f"random_affine, image: expected uint8, uint16 or floating point, got {found['image'].dtype}.")
    if "label" in found and found["label"].ndim == 1:  # a class of the image
        del found["label"]
    for objects, mask, last in (("boxes", "box_mask", 4), ("points", "point_mask", 2)):
        if objects in found:
            found.setdefault(mask, jnp.ones_like(found[objects][..., 0], bool))
            _check(found, objects, (size, found[objects].shape[1] if found[objects].ndim > 1 else 0, last))
            _check(found, mask, found[objects].shape[:2], bool)
    if "label" in found:
        _check(found, "label", (size, height, width), jnp.integer)
    if "box_label" in found and "boxes" in found:
        _check(found, "box_label", found["boxes"].shape[:2], jnp.integer)
    return found


def _check(found: Mapping[str, Array], name: str, shape: tuple[int, ...], kind: Any = None) -> None:
    x = found[name]
    if x.shape != shape or (kind is not None and not jnp.issubdtype(x.dtype, kind)):
        wanted = {None: "", bool: "bool", jnp.integer: "integers "}[kind]
        raise ValueError(f"random_affine, {name}: expected {wanted}{list(shape)}, got {checks.shape(x)}.")


def moved_image(image: Array, sources: Sources, fill: float | Sequence[float]) -> Array:
    """Interpolates an image between the four pixels around each source.

    Pixels of an unsigned type are computed in integers. ``fill`` is the value outside of the old image.
    """
    exact = not jnp.issubdtype(image.dtype, jnp.floating)
    number = jnp.uint32 if exact else jnp.float32
    outside = _fill(fill, image).astype(number)
    (x, fraction_x), (y, fraction_y) = (_split(v, sources.bits) for v in (sources.x, sources.y))
    total = jnp.zeros(image.shape, number)
    for row, weight_y in ((y, 256 - fraction_y), (y + 1, fraction_y)):
        for column, weight_x in ((x, 256 - fraction_x), (x + 1, fraction_x)):
            weight = (weight_y * weight_x).astype(number)[..., None]
            total += _at(image, row, column, outside).astype(number) * (weight if exact else weight / 65536)
    return ((total + 32768) >> 16 if exact else total).astype(image.dtype)


def moved_label(label: Array, sources: Sources) -> Array:
    """Returns the label of the pixel nearest to each source, 255 outside."""
    return _at(label, sources.y >> sources.bits, sources.x >> sources.bits, np.asarray(_VOID, label.dtype))


def _split(position: Array, bits: int) -> tuple[Array, Array]:
    """Returns the pixel whose center lies before a coordinate, and 256ths beyond it."""
    position = position - (1 << (bits - 1)) + (1 << (bits - 9))
    return position >> bits, (position >> (bits - 8)) & 255


def _at(image: Array, row: Array, column: Array, outside: np.ndarray) -> Array:
    """Returns the pixels of rows and columns, or the value outside."""
    height, width = image.shape[:2]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
    found = image.reshape(height * width, *image.shape[2:]).at[place].get(mode="promise_in_bounds")
    return jnp.where(inside.reshape(*inside.shape, *(1,) * (image.ndim - 2)), found, outside)


def _fill(fill: float | Sequence[float], image: Array) -> np.ndarray:
    """Returns the value of each channel outside of an image, ``[1, 1, channels]``."""
    values, channels = np.asarray(fill, np.float64), image.shape[-1]
    if values.shape not in ((), (channels,)):
        raise ValueError(f"random_affine, fill: expected one number or {channels}, got {list(values.shape)}.")
    whole = not jnp.issubdtype(image.dtype, jnp.floating)
    if whole and not ((values == np.round(values)) & (values >= 0) & (values <= np.iinfo(image.dtype).max)).all():
        raise ValueError(f"random_affine, fill: expected values of the image's {image.dtype}, got {fill}.")
    return np.broadcast_to(values, (1, 1, channels))


def moved_boxes(entries: Mapping[str, Array], forward: Forward, size: tuple[int, int]) -> dict[str, Array]:
    """Returns the bounding boxes of moved boxes, cut to ``size``."""
    boxes = entries["boxes"]
    corners = jnp.stack([forward(boxes[:, [i, j]]) for i in (0, 2) for j in (1, 3)])
    edge = np.array([size], np.float32)
    low, high = (jnp.clip(x, 0, edge) for x in (jnp.min(corners, axis=0), jnp.max(corners, axis=0)))
    there = entries["box_mask"] & jnp.all(high - low > _EDGE, axis=-1)
    moved = {"boxes": jnp.where(there[:, None], jnp.concatenate([low, high], -1), 0).astype(boxes.dtype)}
    if "box_label" in entries:
        moved["box_label"] = jnp.where(there, entries["box_label"], 0)
    return {**moved, "box_mask": there}


def moved_points(
    entries: Mapping[str, Array],
    forward: Forward,
    size: tuple[int, int],
    mirrored: Array,
    swap: Sequence[tuple[int, int]],
) -> dict[str, Array]:
    """Returns moved points, exchanged if mirrored, and which are in the image."""
    points, joints = entries["points"], entries["points"].shape[0]
    named = [joint for pair in swap for joint in pair]
    if len(set(named)) != 2 * len(swap) or not all(0 <= joint < joints for joint in named):
        raise ValueError(f"random_affine, swap: expected disjoint pairs of joints from 0 to {joints - 1}, got {swap}.")
    order = np.arange(joints)
    for left, right in swap:
        order[left], order[right] = right, left
    moved = forward(points)
    edge = np.array([size], np.float32) + np.float32(_EDGE)
    visible = entries["point_mask"] & jnp.all((moved >= -_EDGE) & (moved <= edge), axis=-1)
    return {
        "points": jnp.where(mirrored, moved[order], moved).astype(points.dtype),
        "point_mask": jnp.where(mirrored, visible[order], visible),
    }
