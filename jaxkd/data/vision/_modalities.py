"""Other modalities of an image as entries of the batch.

In cross-modal distillation, teacher and student see two modalities of one example (Gupta, Hoffman & Malik, "Cross Modal
Distillation for Supervision Transfer", CVPR 2016). These transforms compute a second modality of an image: one half per
network, the spectrum, or a sequence for a recurrent network. They are deterministic functions of the batch and keep its
image. Bind their arguments with `functools.partial`, chain them with `compose`, and pass them to
`jaxkd.distillers.preprocess`. A model's adapter names the entry that it reads, with ``inputs=``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.data.vision._images import get_images
from jaxkd.types import Batch

Order = Callable[[jax.Array, jax.Array], jax.Array]
"""``(positions, valid) -> order``: the order of visits, ``int32[points]``, invalid points last.

Positions are ``int32[points, 2]`` in scan order; ``valid`` is ``bool[points]``, with all True values first."""


def halves(
    batch: Batch, *, dimension: int = 2, entries: tuple[str, str] = ("left", "right"), image: str = "image"
) -> dict[str, Any]:
    """Divides each image into two halves, such as one for each network.

    Args:
      batch: batch with images ``[batch, height, width, channels]`` of any dtype.
      dimension: 2 for left and right, 1 for top and bottom.
      entries: names of the new entries.
      image: name of the entry to divide.

    Returns:
      The batch with two new entries of equal shape. If the size is odd, both have the middle line.

    Raises:
      ValueError: the entry does not hold images, or the axis is neither height nor width.

    >>> batch = halves({"image": jnp.arange(3).reshape(1, 1, 3, 1)})
    >>> batch["left"].ravel().tolist(), batch["right"].ravel().tolist()
    ([0, 1], [1, 2])
    """
    x = get_images(batch, image)
    if dimension not in (1, 2):
        raise ValueError(f"halves, dimension: expected 1 (top and bottom) or 2 (left and right), got {dimension}.")
    size = x.shape[dimension]
    first, second = (
        jax.lax.slice_in_dim(x, start, start + (size + 1) // 2, axis=dimension) for start in (0, size - (size + 1) // 2)
    )
    return {**batch, entries[0]: first, entries[1]: second}


def spectrum(batch: Batch, *, name: str = "spectrum", image: str = "image") -> dict[str, Any]:
    """Computes the log-magnitude spectrum of each channel.

    ``log(1 + |F(x)| / √(hw))``, with F the two-dimensional Fourier transform and frequency 0 in the middle. The
    spectrum keeps the amplitude of each frequency and discards the phases, which encode locations.

    Args:
      batch: batch with images ``[batch, height, width, channels]`` of any real dtype.
      name: name of the new entry.
      image: name of the entry to transform.

    Returns:
      The batch with the spectrum, float32 of the image's shape.

    Raises:
      ValueError: the entry does not hold images.

    >>> spectrum({"image": jnp.ones((1, 2, 2, 1))})["spectrum"][0, :, :, 0].round(4)
    Array([[0.    , 0.    ],
           [0.    , 1.0986]], dtype=float32)
    """
    x = get_images(batch, image).astype(jnp.float32)
    transformed = jnp.fft.fftshift(jnp.fft.fft2(x, axes=(1, 2), norm="ortho"), axes=(1, 2))
    return {**batch, name: jnp.log1p(jnp.abs(transformed)).astype(jnp.float32)}


def rows(batch: Batch, *, name: str = "rows", image: str = "image") -> dict[str, Any]:
    """Reads each image as the sequence of its rows, from the top.

    Args:
      batch: batch with images ``[batch, height, width, channels]``.
      name: name of the new entry.
      image: name of the entry to read.

    Returns:
      The batch with the sequence ``[batch, height, width · channels]``, in the image's dtype.

    Raises:
      ValueError: the entry does not hold images.

    >>> rows({"image": jnp.arange(6).reshape(1, 2, 3, 1)})["rows"].tolist()
    [[[0, 1, 2], [3, 4, 5]]]
    """
    x = get_images(batch, image)
    return {**batch, name: x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])}


def columns(batch: Batch, *, name: str = "columns", image: str = "image") -> dict[str, Any]:
    """Reads each image as the sequence of its columns, from the left.

    Args:
      batch: batch with images ``[batch, height, width, channels]``.
      name: name of the new entry.
      image: name of the entry to read.

    Returns:
      The batch with the sequence ``[batch, width, height · channels]``, in the image's dtype.

    Raises:
      ValueError: the entry does not hold images.

    >>> columns({"image": jnp.arange(6).reshape(1, 2, 3, 1)})["columns"].tolist()
    [[[0, 3], [1, 4], [2, 5]]]
    """
    x = jnp.swapaxes(get_images(batch, image), 1, 2)
    return {**batch, name: x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])}


def by_scan(positions: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the scan order of points: line by line, from the left."""
    del valid
    return jnp.arange(positions.shape[0], dtype=jnp.int32)


def nearest_next(positions: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the order that visits the nearest unvisited point next.

    It begins at the first point. Of equally near points, the first in scan order is next.

    >>> nearest_next(jnp.array([[0, 0], [0, 5], [1, 1], [2, 4]]), jnp.ones(4, bool)).tolist()
    [0, 2, 3, 1]
    """
    size = positions.shape[0]
    far = jnp.iinfo(jnp.int32).max

    def visit(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        unvisited, at = carry
        unvisited = unvisited & (jnp.arange(size) != at)
        distance = jnp.sum((positions - positions[at][None, :]) ** 2, axis=1)
        # Invalid points are farther than all others, and visited ones farther still.
        distance = jnp.where(unvisited, jnp.where(valid, distance, far - 1), far)
        return (unvisited, jnp.argmin(distance).astype(jnp.int32)), at

    start = jnp.ones_like(valid), jnp.zeros_like(positions[0, 0])
    return jax.lax.scan(visit, start, None, length=size)[1]


def strokes(
    batch: Batch,
    *,
    steps: int = 32,
    threshold: float = 0.25,
    scan_order: Order = nearest_next,
    name: str = "strokes",
    image: str = "image",
) -> dict[str, Any]:
    """Converts the ink of each image to a sequence of points, the path of a pen.

    Points are the pixels above the threshold. If they exceed ``steps``, those with the most ink are kept; among equal
    ones, the first in scan order.

    Args:
      batch: batch with images ``[batch, height, width, channels]``, in which large values are ink: uint8, or floating
        point between 0 and 1, not yet normalized. Channels are averaged.
      steps: length of the sequence, at most height × width.
      threshold: least ink of a point, between 0 and 1.
      scan_order: order of the points: `nearest_next`, `by_scan`, or another function of this signature.
      name: name of the new entry; its mask is ``NAME_mask``.
      image: name of the entry to read.

    Returns:
      The batch with the sequence, float32 ``[batch, steps, 6]``: row and column from -1 to 1, their differences from
      the previous point, the ink, and 1 where the previous point is not adjacent (the pen was lifted); and with the
      mask ``bool[batch, steps]``. Points come first, followed by zeros.

    Raises:
      ValueError: the entry does not hold images, or they have fewer pixels than ``steps``.

    >>> image = jnp.zeros((1, 3, 3, 1)).at[0, 0, 0].set(1.0).at[0, 2, 2].set(1.0)
    >>> found = strokes({"image": image}, steps=3)
    >>> found["strokes_mask"].tolist()
    [[True, True, False]]
    >>> found["strokes"][0].round(2)
    Array([[-1.,  -1.,  0.,  0.,  1.,  0.],
           [ 1.,  1.,  2.,  2.,  1.,  1.],
           [ 0.,  0.,  0.,  0.,  0.,  0.]], dtype=float32)
    """
    x = get_images(batch, image)
    height, width = x.shape[1:3]
    if not 1 <= steps <= height * width:
        raise ValueError(f"strokes, steps: expected 1 to {height * width}, the number of pixels, got {steps}.")
    scale = 255.0 if jnp.issubdtype(x.dtype, jnp.integer) else 1.0
    ink = jnp.mean(x.astype(jnp.float32) / scale, axis=3).reshape(-1, height * width)

    def path(ink: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, darkest = jax.lax.top_k(jnp.where(ink > threshold, ink, -jnp.inf), steps)
        pixels = jnp.sort(jnp.where(ink[darkest] > threshold, darkest, height * width))
        valid = pixels < height * width
        pixels = jnp.where(valid, pixels, 0)
        positions = jnp.stack([pixels // width, pixels % width], axis=1).astype(jnp.int32)
        visited = scan_order(positions, valid)
        positions, valid, pixels = positions[visited], valid[visited], pixels[visited]
        before = jnp.concatenate([positions[:1], positions[:-1]])
        moved = positions - before
        lifted = jnp.max(jnp.abs(moved), axis=1, keepdims=True) > 1
        # -1 and 1 are the centers of the first and the last pixel; a single row or column is at -1.
        unit = 2 / jnp.array([[max(height - 1, 1), max(width - 1, 1)]], jnp.float32)
        features = jnp.concatenate([positions * unit - 1, moved * unit, ink[pixels][:, None], lifted], axis=1)
        return jnp.where(valid[:, None], features, 0), valid

    sequence, mask = jax.vmap(path)(ink)
    return {**batch, name: sequence, f"{name}_mask": mask}
