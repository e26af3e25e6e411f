"""Augmentation on the device: pure functions of a batch, random by the example and not by its place.

What is drawn for an example depends on ``(seed, epoch, index, view)`` alone, never on the batch that it sits in, its
position there, or the number of devices. So a view can be replayed: a resumed run sees what an uninterrupted one would
have seen, and a cache of teacher outputs can be filled in another order than the one in which it is read.

A transform is a function from batch to batch; bind its arguments with `functools.partial` and chain with `compose`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Batch = Mapping[str, Any]
Transform = Callable[[Batch], dict[str, Any]]

CIFAR100_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR100_STD = (0.2675, 0.2565, 0.2761)


def example_keys(batch: Batch, *, seed: Any, view: int = 0) -> jax.Array:
    """A random key for each example: ``fold_in(fold_in(fold_in(key(seed), epoch), index), view)``.

    Args:
      batch: has ``index`` and ``epoch``, integers ``[batch]``.
      seed: of the run; it may be traced, to map over seeds.
      view: which of several draws for the same example in the same epoch.

    Returns:
      Typed keys ``[batch]``.

    Raises:
      ValueError: the batch has no ``index`` or no ``epoch``.

    >>> batch = {"index": jnp.array([4, 7]), "epoch": jnp.array([0, 0])}
    >>> example_keys(batch, seed=0).shape
    (2,)
    """
    missing = [key for key in ("index", "epoch") if key not in batch]
    if missing:
        raise ValueError(
            f"batch: random transforms are keyed by the example, and need {missing} (integers [batch]); got "
            f"{sorted(batch)}. Resident and Stream give both: 'index' is the example's fixed position in its set, "
            "'epoch' the pass that it is drawn in."
        )
    # Threefry by name: another default generator may be one whose draws depend on the place in a vmapped batch.
    root = jax.random.key(seed, impl="threefry2x32")

    def one(epoch: Any, index: Any) -> Any:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(root, epoch), index), view)

    return jax.vmap(one)(jnp.asarray(batch["epoch"]), jnp.asarray(batch["index"]))


def random_crop_flip(batch: Batch, *, seed: Any, padding: int = 4, flip: bool = True, view: int = 0) -> dict[str, Any]:
    """The CIFAR recipe: pad with zeros, crop at random to the old size, mirror half of the images.

    Args:
      batch: ``image`` ``[batch, height, width, channels]`` of any dtype, ``index`` and ``epoch`` ``[batch]``.
      seed: of the run; it may be traced.
      padding: pixels on every side, so the image moves by up to as many each way.
      flip: mirror left and right with probability 1/2.
      view: which of several draws for the same example in the same epoch.

    Returns:
      The batch with a new ``image`` of the same shape and dtype.

    Raises:
      ValueError: the images are not ``[batch, height, width, channels]``, or the batch lacks ``index`` or ``epoch``.

    >>> image = jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)
    >>> batch = {"image": image, "index": jnp.array([3]), "epoch": jnp.array([0])}
    >>> random_crop_flip(batch, seed=0, padding=1)["image"].shape
    (1, 4, 4, 1)
    """
    image = _images(batch)
    places = 2 * padding + 1
    # Raw bits taken modulo the number of places, as one draw: the bias is below one in 2**28.
    bits = jax.vmap(lambda key: jax.random.bits(key, (3,), jnp.uint32))(example_keys(batch, seed=seed, view=view))
    padded = jnp.pad(image, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    start = (bits[:, :2] % np.uint32(places)).astype(jnp.int32)

    def crop(one: Any, offset: Any) -> Any:
        return jax.lax.dynamic_slice(one, (offset[0], offset[1], 0), image.shape[1:])

    image = jax.vmap(crop)(padded, start)
    if flip:
        image = jnp.where((bits[:, 2] >> 31).astype(bool)[:, None, None, None], image[:, :, ::-1], image)
    return {**batch, "image": image}


def shift(batch: Batch, *, seed: Any, pixels: int = 1, view: int = 0) -> dict[str, Any]:
    """Move each image by up to some pixels each way and fill with zeros: what handwritten digits can bear.

    Args:
      batch: ``image`` ``[batch, height, width, channels]``, ``index`` and ``epoch`` ``[batch]``.
      seed: of the run; it may be traced.
      pixels: the largest move.
      view: which of several draws for the same example in the same epoch.

    Returns:
      The batch with a new ``image`` of the same shape and dtype.

    Raises:
      ValueError: as `random_crop_flip`.

    >>> batch = {"image": jnp.ones((2, 8, 8, 1), jnp.uint8), "index": jnp.arange(2), "epoch": jnp.zeros(2, int)}
    >>> shift(batch, seed=0)["image"].dtype.name
    'uint8'
    """
    return random_crop_flip(batch, seed=seed, padding=pixels, flip=False, view=view)


def normalize(batch: Batch, *, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """``(image / 255 - mean) / std``, in float32.

    Args:
      batch: ``image`` uint8 ``[batch, height, width, channels]``.
      mean: one for each channel, on the scale of 0 to 1.
      std: one for each channel, on the scale of 0 to 1.

    Returns:
      The batch with ``image`` float32 of the same shape.

    Raises:
      ValueError: the image is not uint8 (it was normalised before?), or the channels do not match.

    >>> batch = {"image": jnp.full((1, 2, 2, 1), 255, jnp.uint8)}
    >>> float(normalize(batch, mean=(0.5,), std=(0.25,))["image"][0, 0, 0, 0])
    2.0
    """
    image = _images(batch)
    if image.dtype != jnp.uint8:
        raise ValueError(
            f"image: expected uint8, 0 to 255, got {image.dtype}{list(image.shape)}. Normalise once, after every other "
            "transform."
        )
    if not len(mean) == len(std) == image.shape[-1]:
        raise ValueError(
            f"mean and std: expected one number for each of the image's {image.shape[-1]} channels, got {len(mean)} "
            f"and {len(std)}."
        )
    centre = np.asarray(mean, np.float32).reshape(1, 1, 1, -1)
    scale = np.asarray(std, np.float32).reshape(1, 1, 1, -1)
    return {**batch, "image": (image.astype(jnp.float32) / 255 - centre) / scale}


def compose(*transforms: Transform) -> Transform:
    """One transform that applies several from left to right.

    Args:
      *transforms: functions from batch to batch.

    Returns:
      Their composition; of none, a copy.

    >>> from functools import partial
    >>> augment = compose(partial(shift, seed=0), partial(normalize, mean=(0.5,), std=(0.5,)))
    >>> batch = {"image": jnp.ones((2, 8, 8, 1), jnp.uint8), "index": jnp.arange(2), "epoch": jnp.zeros(2, int)}
    >>> augment(batch)["image"].dtype.name
    'float32'
    """
    return _Composed(transforms)


@dataclasses.dataclass(frozen=True)
class _Composed:
    """Several transforms as one, which can say what it is made of."""

    transforms: tuple[Transform, ...]

    def __call__(self, batch: Batch) -> dict[str, Any]:
        for transform in self.transforms:
            batch = transform(batch)
        return dict(batch)


def _images(batch: Batch) -> jax.Array:
    if "image" not in batch:
        raise ValueError(f"batch: expected an 'image', got {sorted(batch)}.")
    image = jnp.asarray(batch["image"])
    if image.ndim != 4:
        raise ValueError(
            f"image: expected [batch, height, width, channels], got {image.dtype}{list(image.shape)}. Under vmap a "
            "batch has no further leading axis."
        )
    return image
