"""Crops of random size and shape, resized; several views of one image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.data._transforms import Transform, example_keys
from jaxkd.data.vision._images import get_images
from jaxkd.types import Batch

_ATTEMPTS = 10
_CROP = 0x63726F70  # its own draws: of one seed, neither a shift nor a flip depends on the crop
_NEXT = 1 << 24
"""Offset of the epoch between the draws of two views."""


def random_resized_crop(
    batch: Batch,
    *,
    seed: Any,
    size: int | None = None,
    areas: tuple[float, float] = (0.08, 1.0),
    ratios: tuple[float, float] = (3 / 4, 4 / 3),
    view: int = 0,
) -> dict[str, Any]:
    """Crops a random part of each image and resizes it to one size.

    Also known as: Inception crop.

    The area of the crop is uniform in ``areas``, the logarithm of its width over its height is uniform in that of
    ``ratios``, and its place is uniform; of ten draws the first that fits into the image is taken, or else the whole
    image. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6. The crop is resized linearly; where
    it is larger than the result, every pixel of it contributes (an antialiased resize).

    To mirror images too, add ``partial(random_crop_flip, padding=0)`` by `compose`.

    Args:
      batch: batch with ``image`` ``[batch, height, width, channels]``, ``index`` and ``epoch`` ``[batch]``.
      seed: seed of the run, an integer; it may be traced.
      size: height and width of the result; None for those of the image.
      areas: smallest and largest area of a crop, as shares of the image's.
      ratios: smallest and largest ratio of a crop's width to its height.
      view: number of the draw, where an example is drawn several times in an epoch.

    Returns:
      The batch with a new ``image`` ``[batch, size, size, channels]`` of the same dtype.

    Raises:
      ValueError: the images are not ``[batch, height, width, channels]``, the batch lacks ``index`` or ``epoch``, or a
        range is empty or not positive.

    >>> import functools
    >>> batch = {"image": jnp.ones((2, 8, 8, 1), jnp.uint8), "index": jnp.arange(2), "epoch": jnp.zeros(2, int)}
    >>> jax.jit(functools.partial(random_resized_crop, seed=0, size=4))(batch)["image"].shape
    (2, 4, 4, 1)
    """
    image = get_images(batch)
    for name, (low, high) in (("areas", areas), ("ratios", ratios)):
        if not 0 < low <= high or (name == "areas" and high > 1):
            limit = ", at most 1," if name == "areas" else ""
            raise ValueError(
                f"random_resized_crop, {name}: expected two positive numbers{limit} in their order, got {(low, high)}."
            )
    if size is not None and size < 1:
        raise ValueError(f"random_resized_crop, size: expected a positive number of pixels, got {size}.")
    height, width = image.shape[1:3]
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _CROP))(example_keys(batch, seed=seed, view=view))

    def one(pixels: Any, key: Any) -> Any:
        shape, place = jax.random.split(key)
        u = jax.random.uniform(shape, (2, _ATTEMPTS))
        area = height * width * (areas[0] + (areas[1] - areas[0]) * u[0])
        ratio = jnp.exp(jnp.log(ratios[0]) + jnp.log(ratios[1] / ratios[0]) * u[1])
        rows, columns = jnp.round(jnp.sqrt(area / ratio)), jnp.round(jnp.sqrt(area * ratio))
        fits = (rows >= 1) & (rows <= height) & (columns >= 1) & (columns <= width)
        first = jnp.argmax(fits)
        found = fits[first]
        lengths = jnp.where(found, rows[first], height), jnp.where(found, columns[first], width)
        free = jax.random.uniform(place, (2,))
        starts = (jnp.floor(u * (n - length + 1)) for u, n, length in zip(free, (height, width), lengths, strict=True))
        (top, left), (tall, wide) = starts, lengths
        vertical = _resize(top, tall, height, size or height)
        horizontal = _resize(left, wide, width, size or width)
        precision = jax.lax.Precision.HIGHEST  # bfloat16 products would lose the last bits of a pixel
        return jnp.einsum("rh,hwc,sw->rsc", vertical, pixels, horizontal, precision=precision)

    result = jax.vmap(one)(image.astype(jnp.promote_types(image.dtype, jnp.float32)), keys)
    if jnp.issubdtype(image.dtype, jnp.integer):
        result = jnp.round(result)
    return {**batch, "image": result.astype(image.dtype)}


def multi_crop(views: Mapping[str, Transform]) -> Transform:
    """Returns a transform that draws several views of each image.

    Each view is the entry of its name, drawn independently from the batch's ``image``: two large crops and several
    small ones for `jaxkd.objectives.dino`, or as many as another method compares. Caron et al., "Unsupervised Learning
    of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020, section 3.2. Pass it to
    `jaxkd.distillers.preprocess`, which runs it on the device as part of the step.

    Args:
      views: a transform for each entry; ``"image"`` may be among them. It should include the normalization. The draws
        of the first one are those that it makes by itself.

    Returns:
      A transform. Entries other than the views are those of the batch.

    Raises:
      ValueError: there are no views, or more than 64; or, on a call, the batch has an entry other than ``image`` of a
        view's name.

    >>> from functools import partial
    >>> crop = partial(random_resized_crop, seed=0)
    >>> views = multi_crop({"image": partial(crop, areas=(0.5, 1.0)), "small": partial(crop, size=4, areas=(0.1, 0.5))})
    >>> batch = {"image": jnp.ones((2, 8, 8, 1)), "index": jnp.arange(2), "epoch": jnp.zeros(2, int)}
    >>> {name: x.shape for name, x in jax.eval_shape(views, batch).items() if x.ndim == 4}
    {'image': (2, 8, 8, 1), 'small': (2, 4, 4, 1)}
    """
    if not 1 <= len(views) <= 64:
        raise ValueError(f"multi_crop, views: expected 1 to 64 views, got {len(views)}.")
    return _MultiCrop(tuple(views.items()))


@dataclasses.dataclass(frozen=True)
class _MultiCrop:
    """Several draws of each image: a class, so that a run's identity can list them."""

    views: tuple[tuple[str, Transform], ...]

    def __call__(self, batch: Batch) -> dict[str, Any]:
        get_images(batch)
        if there := [name for name, _ in self.views if name != "image" and name in batch]:
            raise ValueError(f"batch: {there[0]!r} exists already; choose another name for the view.")
        found = dict(batch)
        for i, (name, augment) in enumerate(self.views):
            drawn = {**batch, "epoch": batch["epoch"] + i * _NEXT} if "epoch" in batch else batch
            found[name] = augment(drawn)["image"]
        return found


def _resize(start: Any, length: Any, old: int, new: int) -> Any:
    """Returns the matrix ``[new, old]`` that resizes the pixels from ``start`` on.

    Its rows are triangles around the center of each new pixel, as wide as a new pixel where that is the larger one,
    and of sum 1 within the crop.
    """
    scale = length / new
    centers = start + (jnp.arange(new) + 0.5) * scale - 0.5
    pixels = jnp.arange(old)
    weights = jnp.maximum(1 - jnp.abs(pixels[None, :] - centers[:, None]) / jnp.maximum(scale, 1), 0)
    inside = (pixels >= start) & (pixels < start + length)
    weights = jnp.where(inside[None, :], weights, 0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)
