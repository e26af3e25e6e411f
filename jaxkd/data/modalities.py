"""Other views of an image as further entries of the batch: what a teacher sees and its student does not.

In cross-modal distillation two networks see two modalities of one example (Gupta, Hoffman & Malik, "Cross Modal
Distillation for Supervision Transfer", CVPR 2016). These transforms make a second modality of an image: one half for
each network, the spectrum, or a sequence for a recurrent network. They are pure functions of the batch, draw nothing at
random, and leave the image in it; bind their arguments with `functools.partial`, chain them with `compose`, and give
them to `jaxkd.training.preprocess`. Which entry a model reads is said by its adapter's ``inputs=`` or by
`jaxkd.adapters.reading`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Batch = Mapping[str, Any]
Order = Callable[[jax.Array, jax.Array], jax.Array]
"""Positions ``int32[points, 2]`` in scan order and which of them are there ``bool[points]``, these first, to the order
to visit them in, ``int32[points]``, with those that are not there last."""

__all__ = ["by_scan", "columns", "halves", "nearest_next", "rows", "spectrum", "strokes"]


def halves(
    batch: Batch, *, axis: int = 2, names: tuple[str, str] = ("left", "right"), image: str = "image"
) -> dict[str, Any]:
    """The two halves of each image, for a teacher and a student that see one each.

    Args:
      batch: images ``[batch, height, width, channels]`` of any dtype.
      axis: 2 for left and right, 1 for top and bottom.
      names: of the halves' entries.
      image: the entry to halve.

    Returns:
      The batch with two entries more, of one shape: the middle line of an odd number is in both.

    Raises:
      ValueError: these are not images, or the axis is neither height nor width.

    >>> batch = halves({"image": jnp.arange(3).reshape(1, 1, 3, 1)})
    >>> batch["left"].ravel().tolist(), batch["right"].ravel().tolist()
    ([0, 1], [1, 2])
    """
    x = _images(batch, image, "halves")
    if axis not in (1, 2):
        raise ValueError(f"halves, axis: expected 1 (top and bottom) or 2 (left and right), got {axis}.")
    size = x.shape[axis]
    first, second = (
        jax.lax.slice_in_dim(x, start, start + (size + 1) // 2, axis=axis) for start in (0, size - (size + 1) // 2)
    )
    return {**batch, names[0]: first, names[1]: second}


def spectrum(batch: Batch, *, name: str = "spectrum", image: str = "image") -> dict[str, Any]:
    """The logarithm of each channel's spectrum: ``log(1 + |F(x)| / √(hw))``, F the two-dimensional Fourier transform.

    What it keeps is how much there is of each frequency; where things are, which is in the phases, is gone. The
    frequency 0 is in the middle.

    Args:
      batch: images ``[batch, height, width, channels]``, of any real dtype.
      name: of the new entry.
      image: the entry to transform.

    Returns:
      The batch with the spectrum, float32 of the image's shape.

    Raises:
      ValueError: these are not images.

    >>> spectrum({"image": jnp.ones((1, 2, 2, 1))})["spectrum"][0, :, :, 0].round(4)
    Array([[0.    , 0.    ],
           [0.    , 1.0986]], dtype=float32)
    """
    x = _images(batch, image, "spectrum").astype(jnp.float32)
    transformed = jnp.fft.fftshift(jnp.fft.fft2(x, axes=(1, 2), norm="ortho"), axes=(1, 2))
    return {**batch, name: jnp.log1p(jnp.abs(transformed)).astype(jnp.float32)}


def rows(batch: Batch, *, name: str = "rows", image: str = "image") -> dict[str, Any]:
    """Each image as the sequence of its rows, from the top: ``[batch, height, width · channels]``.

    Args:
      batch: images ``[batch, height, width, channels]``.
      name: of the new entry.
      image: the entry to read.

    Returns:
      The batch with the sequence, in the image's dtype.

    Raises:
      ValueError: these are not images.

    >>> rows({"image": jnp.arange(6).reshape(1, 2, 3, 1)})["rows"].tolist()
    [[[0, 1, 2], [3, 4, 5]]]
    """
    x = _images(batch, image, "rows")
    return {**batch, name: x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])}


def columns(batch: Batch, *, name: str = "columns", image: str = "image") -> dict[str, Any]:
    """Each image as the sequence of its columns, from the left: ``[batch, width, height · channels]``.

    Args:
      batch: images ``[batch, height, width, channels]``.
      name: of the new entry.
      image: the entry to read.

    Returns:
      The batch with the sequence, in the image's dtype.

    Raises:
      ValueError: these are not images.

    >>> columns({"image": jnp.arange(6).reshape(1, 2, 3, 1)})["columns"].tolist()
    [[[0, 3], [1, 4], [2, 5]]]
    """
    x = jnp.swapaxes(_images(batch, image, "columns"), 1, 2)
    return {**batch, name: x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])}


def by_scan(positions: jax.Array, there: jax.Array) -> jax.Array:
    """Points line by line, as they come."""
    del there
    return jnp.arange(positions.shape[0], dtype=jnp.int32)


def nearest_next(positions: jax.Array, there: jax.Array) -> jax.Array:
    """From the first point always to the nearest that was not visited, the first of those that are equally near.

    >>> nearest_next(jnp.array([[0, 0], [0, 5], [1, 1], [2, 4]]), jnp.ones(4, bool)).tolist()
    [0, 2, 3, 1]
    """
    size = positions.shape[0]
    far = jnp.iinfo(jnp.int32).max

    def visit(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        left, at = carry
        left = left & (jnp.arange(size) != at)
        distance = jnp.sum((positions - positions[at][None, :]) ** 2, axis=1)
        # What is not there comes last, in its own order.
        return (left, jnp.argmin(jnp.where(left, jnp.where(there, distance, far - 1), far)).astype(jnp.int32)), at

    start = jnp.ones_like(there), jnp.zeros_like(positions[0, 0])
    return jax.lax.scan(visit, start, None, length=size)[1]


def strokes(
    batch: Batch,
    *,
    steps: int = 32,
    threshold: float = 0.25,
    order: Order = nearest_next,
    name: str = "strokes",
    image: str = "image",
) -> dict[str, Any]:
    """The ink of each image as the path of a pen: a sequence of points for a recurrent network.

    Points are the pixels above the threshold. Of more than ``steps``, the darkest are taken, the first in scan order of
    those that are equally dark.

    Args:
      batch: images ``[batch, height, width, channels]``, bright where there is ink: uint8, or floating point between 0
        and 1, not yet normalised. Channels are averaged.
      steps: the length of the sequence, at most height × width.
      threshold: how much ink makes a point, between 0 and 1.
      order: `nearest_next`, `by_scan`, or a function of one's own.
      name: of the new entry; its mask is ``NAME_mask``.
      image: the entry to read.

    Returns:
      The batch with the sequence, float32 ``[batch, steps, 6]``: row and column from -1 to 1, how far each has moved
      from the point before, the ink, and 1 where the pen was lifted, the point before not being a neighbour. And with
      ``bool[batch, steps]``, True for points, which come first; what is behind them is 0.

    Raises:
      ValueError: these are not images, or they have fewer pixels than there are steps.

    >>> image = jnp.zeros((1, 3, 3, 1)).at[0, 0, 0].set(1.0).at[0, 2, 2].set(1.0)
    >>> found = strokes({"image": image}, steps=3)
    >>> found["strokes_mask"].tolist()
    [[True, True, False]]
    >>> found["strokes"][0].round(2)
    Array([[-1.,  -1.,  0.,  0.,  1.,  0.],
           [ 1.,  1.,  2.,  2.,  1.,  1.],
           [ 0.,  0.,  0.,  0.,  0.,  0.]], dtype=float32)
    """
    x = _images(batch, image, "strokes")
    height, width = x.shape[1:3]
    if not 1 <= steps <= height * width:
        raise ValueError(f"strokes, steps: expected 1 to {height * width}, the pixels of an image, got {steps}.")
    scale = 255.0 if jnp.issubdtype(x.dtype, jnp.integer) else 1.0
    ink = jnp.mean(x.astype(jnp.float32) / scale, axis=3).reshape(-1, height * width)

    def path(ink: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, darkest = jax.lax.top_k(jnp.where(ink > threshold, ink, -jnp.inf), steps)
        there = ink[darkest] > threshold
        places = jnp.sort(jnp.where(there, darkest, height * width))
        there = places < height * width
        places = jnp.where(there, places, 0)
        positions = jnp.stack([places // width, places % width], axis=1).astype(jnp.int32)
        visited = order(positions, there)
        positions, there, places = positions[visited], there[visited], places[visited]
        before = jnp.concatenate([positions[:1], positions[:-1]])
        moved = positions - before
        lifted = jnp.max(jnp.abs(moved), axis=1, keepdims=True) > 1
        # From the first pixel's centre to the last one's; a single row or column is at the beginning.
        unit = 2 / jnp.array([[max(height - 1, 1), max(width - 1, 1)]], jnp.float32)
        features = jnp.concatenate([positions * unit - 1, moved * unit, ink[places][:, None], lifted], axis=1)
        return jnp.where(there[:, None], features, 0), there

    found, there = jax.vmap(path)(ink)
    return {**batch, name: found, f"{name}_mask": there}


def _images(batch: Batch, entry: str, what: str) -> Any:
    x: Any = batch.get(entry)
    if len(getattr(x, "shape", ())) != 4:
        came = f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else f"entries {sorted(batch)}"
        raise ValueError(f"{what}: expected images [batch, height, width, channels] as {entry!r}, got {came}.")
    return jnp.asarray(x)
