"""One random affine map for image, mask, boxes and points.

The map of an example is a matrix of integers, looked up and computed without any rounding that depends on the device or
on the program that surrounds it. Pixels are moved by integer arithmetic. So images of uint8 and masks are the same bits
wherever an example is drawn: in a cache's program, in a step, on one device or several.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks
from jaxkd.data._transforms import example_keys
from jaxkd.data.vision._images import get_images
from jaxkd.types import Array, Batch

_LEVELS = 4096
"""Number of scales, and of angles, between which a draw decides."""
_SUBPIXELS = 16
"""Parts of a pixel that are the unit of a shift."""
_VOID = 255
_EDGE = 1e-3
"""Pixels by which rounding may move a box or a point across the image's edge."""


def random_affine(
    batch: Batch,
    *,
    seed: Any,
    flip: bool = True,
    scale: tuple[float, float] = (1.0, 1.0),
    rotation: float = 0.0,
    shift: float = 0.0,
    swap: Sequence[tuple[int, int]] = (),
    fill: float | Sequence[float] = 0.0,
    view: int = 0,
) -> dict[str, Any]:
    """Flips, scales, rotates and shifts each image at random, with its annotations.

    A point p of the image moves to ``c + t + s R F (p − c)`` about the center c: mirrored left and right with
    probability 1/2, rotated by an angle and scaled by a factor that are uniform in their ranges, then shifted. The size
    of the image remains.

    Args:
      batch: batch with ``image`` ``[batch, height, width, channels]``, ``index`` and ``epoch`` ``[batch]``, and any of
        the entries of `jaxkd.data.dense`.
      seed: seed of the run, an integer; it may be traced.
      flip: whether to mirror left and right with probability 1/2.
      scale: smallest and largest factor; above 1 enlarges what the image shows.
      rotation: largest angle in degrees, in both directions.
      shift: largest shift in both directions, as a share of the image's width and height.
      swap: pairs of joints, left and right, that exchange their places in ``points`` where an image is mirrored.
      fill: value of pixels that lie outside of the old image, or one for each channel.
      view: number of the draw, where an example is drawn several times in an epoch.

    Returns:
      The batch with new entries of the same shapes and dtypes, as far as it has them. ``image``: linear interpolation,
      integers are rounded. ``label`` ``[batch, height, width]``: the nearest pixel's, 255 outside. ``boxes``: the
      bounding box of the moved corners, cut to the image; ``box_mask`` is False for a box of which nothing remains, and
      its values become 0. ``points``: moved, also out of the image, where ``point_mask`` becomes False. All are
      functions of ``(seed, epoch, index)`` alone, integers bit for bit on any device.

    Raises:
      ValueError: the images are not ``[batch, height, width, channels]`` or too large, the batch lacks ``index`` or
        ``epoch``, an annotation has another shape than described, or a range or a pair is not valid.

    >>> image = jnp.arange(8, dtype=jnp.uint8).reshape(1, 2, 4, 1)
    >>> batch = {"image": image, "index": jnp.array([4]), "epoch": jnp.array([0])}
    >>> batch |= {"boxes": jnp.array([[[0.0, 0.0, 1.0, 2.0]]]), "box_mask": jnp.array([[True]])}
    >>> found = random_affine(batch, seed=0)
    >>> found["image"][0, :, :, 0].tolist(), found["boxes"][0, 0].tolist()
    ([[3, 2, 1, 0], [7, 6, 5, 4]], [3.0, 0.0, 4.0, 2.0])
    """
    image = get_images(batch)
    height, width, channels = image.shape[1:]
    _check(scale, rotation, shift)
    bits = _fraction_bits(height, width, scale, shift)
    maps = _draw(
        batch, seed, view, flip=flip, scale=scale, rotation=rotation, shift=shift, size=(height, width), bits=bits
    )
    place = _sources(maps, height, width, bits)
    found: dict[str, Any] = {**batch, "image": _moved_images(image, place, _fill(fill, channels, image.dtype))}
    if "label" in batch and jnp.ndim(batch["label"]) == 3:
        found["label"] = _moved_labels(jnp.asarray(batch["label"]), place, (height, width))
    ahead = _Forward.of(maps, bits, (width, height))
    if "boxes" in batch:
        found |= _moved_boxes(batch, ahead, (width, height))
    if "points" in batch:
        found |= _moved_points(batch, ahead, maps.mirrored, swap, (width, height))
    return found


class _Maps(NamedTuple):
    """The inverse map of each example: where a pixel of the new image comes from.

    Attributes:
      matrix: int32 ``[batch, 2, 2]``, fixed point, for (x, y) from the center.
      offset: int32 ``[batch, 2]``, the shift in parts of a pixel.
      mirrored: bool ``[batch]``.
    """

    matrix: Array
    offset: Array
    mirrored: Array


class _Sources(NamedTuple):
    """Where the centers of the new pixels come from: coordinates in the old image.

    Attributes:
      x: int32 ``[batch, height, width]``, fixed point.
      y: of the same form.
      bits: number of fraction bits.
    """

    x: Array
    y: Array
    bits: int


class _Forward(NamedTuple):
    """The map of each example in floating point: ``p -> matrix p + offset``."""

    matrix: Array
    offset: Array

    @classmethod
    def of(cls, maps: _Maps, bits: int, size: tuple[int, int]) -> _Forward:
        """Inverts the maps exactly up to rounding."""
        m = maps.matrix.astype(jnp.float32) / 2**bits
        a, b, c, d = m[:, 0, 0], m[:, 0, 1], m[:, 1, 0], m[:, 1, 1]
        determinant = a * d - b * c
        matrix = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-c, a], -1)], -2) / determinant[:, None, None]
        center = np.array(size, np.float32) / 2
        still = matrix[:, :, 0] * center[0] + matrix[:, :, 1] * center[1]  # no matrix product: it may be of few bits
        return cls(matrix, center[None] - still + maps.offset.astype(jnp.float32) / _SUBPIXELS)

    def __call__(self, points: Array) -> Array:
        """Moves points ``[batch, n, 2]``."""
        m = self.matrix[:, None]
        return m[..., 0] * points[..., :1] + m[..., 1] * points[..., 1:] + self.offset[:, None]


def _check(scale: tuple[float, float], rotation: float, shift: float) -> None:
    if not 0 < scale[0] <= scale[1] < math.inf:
        raise ValueError(f"random_affine, scale: expected 0 < smallest <= largest, got {scale}.")
    if not 0 <= rotation <= 180:
        raise ValueError(f"random_affine, rotation: expected 0 to 180 degrees, got {rotation}.")
    if not 0 <= shift <= 1:
        raise ValueError(f"random_affine, shift: expected a share of the image from 0 to 1, got {shift}.")


def _fraction_bits(height: int, width: int, scale: tuple[float, float], shift: float) -> int:
    """Returns the bits of a matrix's fraction with which no coordinate exceeds 32 bits."""
    reach = (height + width) * (1 + 2 * shift) * max(1 / scale[0], 1) * _SUBPIXELS
    bits = min(29 - math.ceil(math.log2(reach)), 20)
    if bits < 8:
        raise ValueError(
            f"random_affine: images of {height}x{width} pixels, scaled by {scale[0]} and shifted by {shift}, exceed "
            "its arithmetic. Resize the images: data.dense.arrays(source, size=(height, width))."
        )
    return bits


def _draw(
    batch: Batch,
    seed: Any,
    view: int,
    *,
    flip: bool,
    scale: tuple[float, float],
    rotation: float,
    shift: float,
    size: tuple[int, int],
    bits: int,
) -> _Maps:
    keys = example_keys(batch, seed=seed, view=view)
    drawn = jax.vmap(lambda key: jax.random.bits(key, (5,), jnp.uint32))(keys)
    mirrored = (drawn[:, 0] >> 31).astype(bool) & flip
    # Tables of the host, because a device's cosine may be rounded otherwise; a product of two floats never is.
    between = np.arange(_LEVELS) / (_LEVELS - 1)
    inverse = (1 / (scale[0] + (scale[1] - scale[0]) * between)).astype(np.float32)
    angles = np.deg2rad(rotation) * (2 * between - 1)
    chosen = (drawn[:, 1:3] % np.uint32(_LEVELS)).astype(jnp.int32)
    factor = jnp.asarray(inverse)[chosen[:, 0]] * 2.0**bits
    cosine, sine = (
        jnp.round(factor * jnp.asarray(table.astype(np.float32))[chosen[:, 1]]).astype(jnp.int32)
        for table in (np.cos(angles), np.sin(angles))
    )
    sign = jnp.where(mirrored, -1, 1)
    matrix = jnp.stack([jnp.stack([sign * cosine, sign * sine], -1), jnp.stack([-sine, cosine], -1)], -2)
    largest = [round(shift * side * _SUBPIXELS) for side in (size[1], size[0])]
    offset = [(drawn[:, 3 + i] % np.uint32(2 * most + 1)).astype(jnp.int32) - most for i, most in enumerate(largest)]
    return _Maps(matrix, jnp.stack(offset, -1), mirrored)


def _sources(maps: _Maps, height: int, width: int, bits: int) -> _Sources:
    half = _SUBPIXELS // 2

    def one(m: Array, offset: Array) -> tuple[Array, Array]:
        x = ((2 * jnp.arange(width, dtype=jnp.int32) + 1 - width) * half - offset[0])[None, :]
        y = ((2 * jnp.arange(height, dtype=jnp.int32) + 1 - height) * half - offset[1])[:, None]
        center = [side * (half << bits) for side in (width, height)]
        return m[0, 0] * x + m[0, 1] * y + center[0], m[1, 0] * x + m[1, 1] * y + center[1]

    return _Sources(*jax.vmap(one)(maps.matrix, maps.offset), bits + int(math.log2(_SUBPIXELS)))


def _fill(fill: float | Sequence[float], channels: int, dtype: Any) -> np.ndarray:
    """Returns the value of each channel outside of the old image."""
    values = np.asarray(fill, np.float64)
    if values.shape not in ((), (channels,)):
        raise ValueError(f"random_affine, fill: expected one number or {channels}, got {list(values.shape)}.")
    whole = not jnp.issubdtype(dtype, jnp.floating)
    if whole and not ((values == np.round(values)) & (values >= 0) & (values <= np.iinfo(dtype).max)).all():
        raise ValueError(f"random_affine, fill: expected values of the image's {dtype}, got {fill}.")
    return np.broadcast_to(values, (channels,))


def _moved_images(image: Array, place: _Sources, fill: np.ndarray) -> Array:
    """Interpolates images between the four pixels around each source."""
    exact = image.dtype in (jnp.uint8, jnp.uint16)
    if not exact and not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"random_affine, image: expected uint8, uint16 or floating point, got {image.dtype}.")
    number = jnp.uint32 if exact else jnp.float32
    outside = jnp.asarray(fill, number)

    def one(image: Array, x: Array, y: Array) -> Array:
        height, width, channels = image.shape
        pixels = image.reshape(-1, channels)
        # From the centers of pixels, to the nearest 1/256.
        (x, fraction_x), (y, fraction_y) = (_split(v, place.bits) for v in (x, y))
        total = jnp.zeros((*x.shape, channels), number)
        for i, weight_y in ((y, 256 - fraction_y), (y + 1, fraction_y)):
            for j, weight_x in ((x, 256 - fraction_x), (x + 1, fraction_x)):
                value = _at(pixels, i, j, (height, width)).astype(number)
                value = jnp.where(_inside(i, j, (height, width))[..., None], value, outside)
                weight = (weight_y * weight_x).astype(number)[..., None]
                total += value * (weight if exact else weight / 65536)
        return ((total + 32768) >> 16 if exact else total).astype(image.dtype)

    return jax.vmap(one)(image, place.x, place.y)


def _split(position: Array, bits: int) -> tuple[Array, Array]:
    """Returns the pixel whose center lies before a coordinate, and 256ths beyond it."""
    position = position - (1 << (bits - 1)) + (1 << (bits - 9))
    return position >> bits, (position >> (bits - 8)) & 255


def _moved_labels(label: Array, place: _Sources, size: tuple[int, int]) -> Array:
    if label.shape[1:] != size or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(
            f"random_affine, label: expected integers [batch, {size[0]}, {size[1]}], the size of the images, got "
            f"{checks.shape(label)}."
        )

    def one(label: Array, x: Array, y: Array) -> Array:
        i, j = y >> place.bits, x >> place.bits
        nearest = _at(label.reshape(-1), i, j, size)
        return jnp.where(_inside(i, j, size), nearest, jnp.asarray(_VOID, label.dtype))

    return jax.vmap(one)(label, place.x, place.y)


def _at(pixels: Array, row: Array, column: Array, size: tuple[int, int]) -> Array:
    """Returns pixels of an image whose rows are joined; any one where it has none."""
    place = jnp.clip(row, 0, size[0] - 1) * size[1] + jnp.clip(column, 0, size[1] - 1)
    return pixels.at[place].get(mode="promise_in_bounds")


def _inside(row: Array, column: Array, size: tuple[int, int]) -> Array:
    return (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])


def _moved_boxes(batch: Batch, ahead: _Forward, size: tuple[int, int]) -> dict[str, Array]:
    boxes = jnp.asarray(batch["boxes"])
    if boxes.ndim != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"random_affine, boxes: expected [batch, n, 4], got {checks.shape(boxes)}.")
    there = jnp.asarray(batch.get("box_mask", np.ones(boxes.shape[:2], bool)))
    if there.shape != boxes.shape[:2] or there.dtype != bool:
        raise ValueError(f"random_affine, box_mask: expected bool{list(boxes.shape[:2])}, got {checks.shape(there)}.")
    corners = [ahead(boxes[..., [i, j]]) for i in (0, 2) for j in (1, 3)]
    low, high = (limit(jnp.stack(corners), axis=0) for limit in (jnp.min, jnp.max))
    edge = np.array(size, np.float32)
    low, high = (jnp.clip(x, 0, edge[None, None]) for x in (low, high))
    there &= jnp.all(high - low > _EDGE, axis=-1)
    moved = {"boxes": jnp.where(there[..., None], jnp.concatenate([low, high], -1), 0).astype(boxes.dtype)}
    if "box_label" in batch:
        moved["box_label"] = jnp.where(there, batch["box_label"], 0)
    return {**moved, "box_mask": there}


def _moved_points(
    batch: Batch, ahead: _Forward, mirrored: Array, swap: Sequence[tuple[int, int]], size: tuple[int, int]
) -> dict[str, Array]:
    points = jnp.asarray(batch["points"])
    if points.ndim != 3 or points.shape[-1] != 2:
        raise ValueError(f"random_affine, points: expected [batch, joints, 2], got {checks.shape(points)}.")
    visible = jnp.asarray(batch.get("point_mask", np.ones(points.shape[:2], bool)))
    if visible.shape != points.shape[:2] or visible.dtype != bool:
        raise ValueError(
            f"random_affine, point_mask: expected bool{list(points.shape[:2])}, got {checks.shape(visible)}."
        )
    joints = points.shape[1]
    order = np.arange(joints)
    named = [joint for pair in swap for joint in pair]
    if len(set(named)) != len(named) or not all(0 <= joint < joints for joint in named):
        raise ValueError(f"random_affine, swap: expected disjoint pairs of joints from 0 to {joints - 1}, got {swap}.")
    for left, right in swap:
        order[left], order[right] = right, left
    moved = ahead(points.astype(jnp.float32))
    edge = np.array(size, np.float32)
    visible &= jnp.all((moved >= -_EDGE) & (moved <= (edge + np.float32(_EDGE))[None, None]), axis=-1)
    exchanged = mirrored[:, None]
    return {
        "points": jnp.where(exchanged[..., None], moved[:, order], moved).astype(points.dtype),
        "point_mask": jnp.where(exchanged, visible[:, order], visible),
    }
