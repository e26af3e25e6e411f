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
