"""Independent distortions of an image or a pair, for self-distillation.

Augmentations draw by the example's ``epoch`` and ``index``. The second draw uses the number of an epoch that no run
reaches. Like the first, it can be replayed, and depends neither on the batch nor on the number of devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxkd.data._transforms import Transform
from jaxkd.data.vision._images import get_images
from jaxkd.types import Batch

_AGAIN = 1 << 30
"""Offset of the epoch for the second draw."""

_NEXT = 1 << 24
"""Offset of the epoch between the draws of many views."""


def two_views(augment: Transform, *, image: str = "image", view: str = "view") -> Transform:
    """Returns a transform that computes two distortions of each image.

    Also known as: DDGSD (data-distortion guided self-distillation).

    Xu & Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019. Pass the transform to
    `jaxkd.distillers.preprocess`, which runs it on the device as part of the step; `jaxkd.schemes.distorted_views`
    trains on the two views.

    Args:
      augment: batch transform that draws by example, such as `random_crop_flip` with its seed, or a `compose` of
        several. It runs twice, so that it should include normalization.
      image: name of the entry to distort.
      view: name of the new entry for the second distortion.

    Returns:
      A transform. Other entries that ``augment`` changes are those of the first distortion.

    Raises:
      ValueError: on a call with a batch that has no such image, or has such a view already.

    >>> import jax.numpy as jnp
    >>> from functools import partial
    >>> from jaxkd.data import shift
    >>> image = jnp.arange(64, dtype=jnp.uint8).reshape(1, 8, 8, 1)
    >>> batch = {"image": image, "index": jnp.array([3]), "epoch": jnp.array([0])}
    >>> both = two_views(partial(shift, seed=0, pixels=3))(batch)
    >>> bool((both["image"] == both["view"]).all()), both["epoch"]
    (False, Array([0], dtype=int32))
    """
    return _TwoDraws(augment, image, image, view)


def with_pair(augment: Transform, *, image: str = "image", pair: str = "pair") -> Transform:
    """Returns a transform that distorts each image and, independently, its partner.

    `SameClass` gives the stored images of the partners. Two examples with the same partner distort it independently.

    Args:
      augment: batch transform that draws by example, as for `two_views`.
      image: name of the entry to distort.
      pair: name of the entry with the partners.

    Returns:
      A transform.

    Raises:
      ValueError: on a call with a batch that has no such entries.

    >>> import jax.numpy as jnp
    >>> from functools import partial
    >>> from jaxkd.data import normalize
    >>> batch = {"image": jnp.zeros((1, 2, 2, 1), jnp.uint8), "pair": jnp.full((1, 2, 2, 1), 255, jnp.uint8)}
    >>> found = with_pair(partial(normalize, mean=(0.0,), std=(1.0,)))(batch)
    >>> float(found["image"][0, 0, 0, 0]), float(found["pair"][0, 0, 0, 0])
    (0.0, 1.0)
    """
    return _TwoDraws(augment, image, pair, pair)


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

    >>> import jax, jax.numpy as jnp
    >>> from functools import partial
    >>> from jaxkd.data import random_resized_crop
    >>> crop = partial(random_resized_crop, seed=0)
    >>> views = multi_crop({"image": partial(crop, area=(0.5, 1.0)), "small": partial(crop, size=4, area=(0.1, 0.5))})
    >>> batch = {"image": jnp.ones((2, 8, 8, 1)), "index": jnp.arange(2), "epoch": jnp.zeros(2, int)}
    >>> {name: x.shape for name, x in jax.eval_shape(views, batch).items() if x.ndim == 4}
    {'image': (2, 8, 8, 1), 'small': (2, 4, 4, 1)}
    """
    if not 1 <= len(views) <= 64:
        raise ValueError(f"multi_crop, views: expected 1 to 64 views, got {len(views)}.")
    return _MultiCrop(tuple(views.items()))


@dataclasses.dataclass(frozen=True)
class _TwoDraws:
    """Applies a transform to one image, and with another draw to a second one."""

    augment: Transform
    image: str
    source: str
    target: str

    def __call__(self, batch: Batch) -> dict[str, Any]:
        missing = [name for name in (self.image, self.source) if name not in batch]
        if missing:
            raise ValueError(
                f"batch: expected {sorted({self.image, self.source})}, got {sorted(batch)}. data.SameClass adds "
                "partners of the same class."
            )
        if self.target != self.source and self.target in batch:
            raise ValueError(f"batch: {self.target!r} exists already; choose another name for the second view.")
        again = {**batch, self.image: batch[self.source]}
        if "epoch" in batch:
            again["epoch"] = batch["epoch"] + _AGAIN
        return {**self.augment(batch), self.target: self.augment(again)[self.image]}


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
