"""One random affine map for image, mask, boxes and points.

The map of an example is a matrix of integers, looked up and computed without any rounding that depends on the device or
on the program that surrounds it. Pixels are moved by integer arithmetic. So images of uint8 and masks are the same bits
wherever an example is drawn: in a cache's program, in a step, on one device or several.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks
from jaxkd.data._transforms import example_keys
from jaxkd.data.dense._moves import (
    ENTRIES,
    Forward,
    Sources,
    moved_boxes,
    moved_image,
    moved_label,
    moved_points,
    moving,
)
from jaxkd.data.vision._images import get_images
from jaxkd.types import Array, Batch

_LEVELS = 1024
"""Number of scales, and of angles, between which a draw decides."""
_SUBPIXELS = 16
"""Parts of a pixel that are the unit of a shift."""


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
        the entries of `jaxkd.data.dense`. Of clips, ``[batch, frames, ...]``, all frames have the map of their clip.
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
      functions of ``(seed, epoch, index)`` alone; images of integers and masks are moved without rounding errors.

    Raises:
      ValueError: the images are not ``[batch, height, width, channels]`` or too large, the batch lacks ``index`` or
        ``epoch``, an annotation has another shape than described, or a range or a pair is not valid.

    >>> image = jnp.arange(8, dtype=jnp.uint8).reshape(1, 2, 4, 1)
    >>> batch = {"image": image, "index": jnp.array([4]), "epoch": jnp.array([0])}
    >>> batch |= {"boxes": jnp.array([[[0.0, 0.0, 1.0, 2.0]]]), "box_mask": jnp.array([[True]])}
    >>> found = jax.jit(functools.partial(random_affine, seed=0))(batch)
    >>> found["image"][0, :, :, 0].tolist(), found["boxes"][0, 0].tolist()
    ([[3, 2, 1, 0], [7, 6, 5, 4]], [3.0, 0.0, 4.0, 2.0])
    """
    _check(scale, rotation, shift)
    options: dict[str, Any] = {"flip": flip, "scale": scale, "rotation": rotation, "shift": shift}
    options |= {"swap": swap, "fill": fill}
    if jnp.ndim(batch.get("image", 0)) == 5:
        return _by_clip(functools.partial(random_affine, seed=seed, view=view, **options), batch)
    height, width = get_images(batch).shape[1:3]
    bits = _fraction_bits((width, height), scale, shift)

    def move(key: Array, entries: Mapping[str, Array]) -> dict[str, Array]:
        return _move(key, entries, size=(width, height), bits=bits, **options)

    return {**batch, **jax.vmap(move)(example_keys(batch, seed=seed, view=view), moving(batch))}


def _by_clip(transform: Callable[[Batch], dict[str, Any]], batch: Batch) -> dict[str, Any]:
    """Moves all frames of a clip by its map: they get its index and epoch."""
    size, frames = batch["image"].shape[:2]
    folded = {name: jnp.repeat(jnp.asarray(batch[name]), frames) for name in ("index", "epoch") if name in batch}
    for name in (name for name in ENTRIES if jnp.ndim(batch.get(name, 0)) > 2):
        if batch[name].shape[:2] != (size, frames):
            raise ValueError(
                f"random_affine, {name}: expected [batch, frames, ...] beside clips, {[size, frames]}, got "
                f"{checks.shape(batch[name])}."
            )
        folded[name] = jnp.reshape(batch[name], (size * frames, *batch[name].shape[2:]))
    moved = transform(folded)
    return {**batch, **{name: x.reshape(size, frames, *x.shape[1:]) for name, x in moved.items() if name in ENTRIES}}


def _check(scale: tuple[float, float], rotation: float, shift: float) -> None:
    if not 0 < scale[0] <= scale[1] < math.inf:
        raise ValueError(f"random_affine, scale: expected 0 < smallest <= largest, got {scale}.")
    if not 0 <= rotation <= 180:
        raise ValueError(f"random_affine, rotation: expected 0 to 180 degrees, got {rotation}.")
    if not 0 <= shift <= 1:
        raise ValueError(f"random_affine, shift: expected a share of the image from 0 to 1, got {shift}.")


def _fraction_bits(size: tuple[int, int], scale: tuple[float, float], shift: float) -> int:
    """Returns the bits of a fraction with which no coordinate exceeds 32 bits."""
    reach = sum(size) * (1 + 2 * shift) * max(1 / scale[0], 1) * _SUBPIXELS
    bits = min(29 - math.ceil(math.log2(reach)), 20)
    if bits < 8:
        raise ValueError(
            f"random_affine: images of {size[1]}x{size[0]} pixels, scaled by {scale[0]} and shifted by {shift}, exceed "
            "its arithmetic. Resize the images: data.dense.arrays(source, size=(height, width))."
        )
    return bits


def _move(
    key: Array,
    entries: Mapping[str, Array],
    *,
    size: tuple[int, int],
    bits: int,
    flip: bool,
    scale: tuple[float, float],
    rotation: float,
    shift: float,
    swap: Sequence[tuple[int, int]],
    fill: float | Sequence[float],
) -> dict[str, Array]:
    """Draws the map of one example and moves its entries; ``size`` is (width, height)."""
    drawn = jax.random.bits(key, (5,), jnp.uint32)
    mirrored = (drawn[0] >> 31).astype(bool) & flip
    # Tables of the host, because a device's cosine may be rounded otherwise; a product of two floats never is.
    between = np.arange(_LEVELS) / (_LEVELS - 1)
    angles = np.deg2rad(rotation) * (2 * between - 1)
    factor = _entry(1 / (scale[0] + (scale[1] - scale[0]) * between), drawn[1]) * 2.0**bits
    cosine, sine = (
        jnp.round(factor * _entry(table, drawn[2])).astype(jnp.int32) for table in (np.cos(angles), np.sin(angles))
    )
    sign = jnp.where(mirrored, -1, 1)
    matrix = ((sign * cosine, sign * sine), (-sine, cosine))  # from the new image to the old one
    ranges = [round(shift * side * _SUBPIXELS) for side in size]
    offset = [(x % np.uint32(2 * most + 1)).astype(jnp.int32) - most for x, most in zip(drawn[3:], ranges, strict=True)]

    half = _SUBPIXELS // 2
    column, row = (
        (2 * jnp.arange(side, dtype=jnp.int32) + 1 - side) * half - t for side, t in zip(size, offset, strict=True)
    )
    x, y = (
        a * column[None, :] + b * row[:, None] + side * (half << bits)
        for (a, b), side in zip(matrix, size, strict=True)
    )
    sources = Sources(x, y, bits + int(math.log2(_SUBPIXELS)))
    forward = _inverted(matrix, [t.astype(jnp.float32) / _SUBPIXELS for t in offset], size, bits)
    moved = {"image": moved_image(entries["image"], sources, fill)}
    if "label" in entries:
        moved["label"] = moved_label(entries["label"], sources)
    if "boxes" in entries:
        moved |= moved_boxes(entries, forward, size)
    if "points" in entries:
        moved |= moved_points(entries, forward, size, mirrored, swap)
    return moved


def _entry(table: np.ndarray, bits: Array) -> Array:
    """Returns a random entry of a table."""
    # A sum, because an index that is divided over explicit axes of a mesh cannot be applied to a table that is not.
    chosen = np.arange(_LEVELS) == (bits % np.uint32(_LEVELS)).astype(jnp.int32)
    return jnp.sum(jnp.where(chosen, table.astype(np.float32), 0))


def _inverted(matrix: Any, offset: Sequence[Array], size: tuple[int, int], bits: int) -> Forward:
    """Returns the map from the old image to the new one, in floating point."""
    (a, b), (c, d) = (tuple(x.astype(jnp.float32) / 2**bits for x in row) for row in matrix)
    determinant = a * d - b * c
    inverse = ((d / determinant, -b / determinant), (-c / determinant, a / determinant))
    center = [side / 2 for side in size]
    still = [u * center[0] + v * center[1] for u, v in inverse]
    return Forward(inverse, tuple(m - s + t for m, s, t in zip(center, still, offset, strict=True)))
