"""Augmentation of images on the device, random by example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.data._transforms import example_keys
from jaxkd.data.vision._images import get_images
from jaxkd.types import Batch

CIFAR100_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR100_STD = (0.2675, 0.2565, 0.2761)


def random_crop_flip(batch: Batch, *, seed: Any, padding: int = 4, flip: bool = True, view: int = 0) -> dict[str, Any]:
    """Pads with zeros, crops at random to the old size, mirrors half of the images.

    This is the standard augmentation of CIFAR.

    Args:
      batch: batch with ``image`` ``[batch, height, width, channels]``, ``index`` and ``epoch`` ``[batch]``.
      seed: seed of the run, an integer; it may be traced.
      padding: pixels added on every side, and hence the largest shift in each direction.
      flip: whether to mirror left and right with probability 1/2.
      view: number of the draw, where an example is drawn several times in an epoch.

    Returns:
      The batch with a new ``image`` of the same shape and dtype.

    Raises:
      ValueError: the images are not ``[batch, height, width, channels]``, or the batch lacks ``index`` or ``epoch``.

    >>> image = jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)
    >>> batch = {"image": image, "index": jnp.array([3]), "epoch": jnp.array([0])}
    >>> random_crop_flip(batch, seed=0, padding=1)["image"].shape
    (1, 4, 4, 1)
    """
    image = get_images(batch)
    offsets = 2 * padding + 1
    # One draw of raw bits per example, reduced modulo the number of offsets: the bias is below one in 2**28.
    bits = jax.vmap(lambda key: jax.random.bits(key, (3,), jnp.uint32))(example_keys(batch, seed=seed, view=view))
    padded = jnp.pad(image, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    start = (bits[:, :2] % np.uint32(offsets)).astype(jnp.int32)

    def crop(one: Any, offset: Any) -> Any:
        return jax.lax.dynamic_slice(one, (offset[0], offset[1], 0), image.shape[1:])

    image = jax.vmap(crop)(padded, start)
    if flip:
        image = jnp.where((bits[:, 2] >> 31).astype(bool)[:, None, None, None], image[:, :, ::-1], image)
    return {**batch, "image": image}


def shift(batch: Batch, *, seed: Any, pixels: int = 1, view: int = 0) -> dict[str, Any]:
    """Shifts each image at random and fills with zeros, as suits digits.

    Args:
      batch: batch with ``image`` ``[batch, height, width, channels]``, ``index`` and ``epoch`` ``[batch]``.
      seed: seed of the run, an integer; it may be traced.
      pixels: largest shift in each direction.
      view: number of the draw, where an example is drawn several times in an epoch.

    Returns:
      The batch with a new ``image`` of the same shape and dtype.

    Raises:
      ValueError: as for `random_crop_flip`.

    >>> batch = {"image": jnp.ones((2, 8, 8, 1), jnp.uint8), "index": jnp.arange(2), "epoch": jnp.zeros(2, int)}
    >>> shift(batch, seed=0)["image"].dtype.name
    'uint8'
    """
    return random_crop_flip(batch, seed=seed, padding=pixels, flip=False, view=view)


def random_resized_crop(
    batch: Batch,
    *,
    seed: Any,
    size: int | None = None,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: float = 4 / 3,
    flip: bool = True,
    view: int = 0,
) -> dict[str, Any]:
    """Crops a random part of each image, resizes it, mirrors half of the images.

    Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6: the part's share of the area is uniform, and
    the logarithm of its ratio of width to height is. A side that is longer than the image's is cut to it. The part is
    resized by linear interpolation, with a filter that is wide enough where it gets smaller.

    Args:
      batch: batch with ``image`` ``[batch, height, width, channels]``, ``index`` and ``epoch`` ``[batch]``.
      seed: seed of the run, an integer; it may be traced.
      size: height and width of the result; None for those of the images.
      area: smallest and largest share of the image's area.
      ratio: largest ratio of the sides, in both directions.
      flip: whether to mirror left and right with probability 1/2.
      view: number of the draw, where an example is drawn several times in an epoch.

    Returns:
      The batch with a new ``image`` of the same dtype; integers are rounded.

    Raises:
      ValueError: as for `random_crop_flip`; or the shares are not ``0 < smallest ≤ largest ≤ 1``, or the ratio is below
        1.

    >>> batch = {"image": jnp.ones((2, 8, 8, 1), jnp.uint8), "index": jnp.arange(2), "epoch": jnp.zeros(2, int)}
    >>> random_resized_crop(batch, seed=0, size=4, area=(0.25, 1.0))["image"].shape
    (2, 4, 4, 1)
    """
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"area: expected shares of the image with 0 < smallest <= largest <= 1, got {area}.")
    if ratio < 1:
        raise ValueError(f"ratio: expected at least 1, the largest ratio of the sides, got {ratio}.")
    image = get_images(batch)
    height, width, channels = image.shape[1:]
    shape = (height, width) if size is None else (size, size)
    keys = example_keys(batch, seed=seed, view=view)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (5,)))(keys)
    share = area[0] + (area[1] - area[0]) * draws[:, 0]
    aspect = jnp.exp((2 * draws[:, 1] - 1) * np.float32(np.log(ratio)))  # width / height
    sides = jnp.sqrt(share * height * width)
    crop = jnp.stack([jnp.minimum(sides / jnp.sqrt(aspect), height), jnp.minimum(sides * jnp.sqrt(aspect), width)], -1)
    begin = draws[:, 2:4] * (jnp.asarray([height, width], jnp.float32)[None] - crop)

    def resize(one: Any, crop: Any, begin: Any) -> Any:
        factor = jnp.asarray(shape, jnp.float32) / crop
        moved = one.astype(jnp.float32), (*shape, channels), (0, 1), factor, -begin * factor
        return jax.image.scale_and_translate(*moved, method="linear", antialias=True)

    resized = jax.vmap(resize)(image, crop, begin)
    if flip:
        resized = jnp.where((draws[:, 4] < 0.5)[:, None, None, None], resized[:, :, ::-1], resized)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        limits = jnp.iinfo(image.dtype)
        resized = jnp.clip(jnp.round(resized), limits.min, limits.max)
    return {**batch, "image": resized.astype(image.dtype)}


def normalize(batch: Batch, *, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Computes ``(image / 255 - mean) / std`` in float32.

    Args:
      batch: batch with ``image`` uint8 ``[batch, height, width, channels]``.
      mean: mean of each channel, on the scale of 0 to 1.
      std: standard deviation of each channel, on the scale of 0 to 1.

    Returns:
      The batch with ``image`` float32 of the same shape.

    Raises:
      ValueError: the image is not uint8, as after an earlier normalization, or the channels do not match.

    >>> batch = {"image": jnp.full((1, 2, 2, 1), 255, jnp.uint8)}
    >>> float(normalize(batch, mean=(0.5,), std=(0.25,))["image"][0, 0, 0, 0])
    2.0
    """
    image = get_images(batch)
    if image.dtype != jnp.uint8:
        raise ValueError(
            f"image: expected uint8, 0 to 255, got {image.dtype}{list(image.shape)}. Normalize once, after every other "
            "transform."
        )
    if not len(mean) == len(std) == image.shape[-1]:
        raise ValueError(
            f"mean and std: expected one number for each of the image's {image.shape[-1]} channels, got {len(mean)} "
            f"and {len(std)}."
        )
    center = np.asarray(mean, np.float32).reshape(1, 1, 1, -1)
    scale = np.asarray(std, np.float32).reshape(1, 1, 1, -1)
    return {**batch, "image": (image.astype(jnp.float32) / 255 - center) / scale}
