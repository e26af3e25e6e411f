"""Two independent distortions of an image or a pair, for self-distillation.

Augmentations draw by the example's ``epoch`` and ``index``. The second draw uses the number of an epoch that no run
reaches. Like the first, it can be replayed, and depends neither on the batch nor on the number of devices.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxkd.data._transforms import Transform
from jaxkd.types import Batch

_AGAIN = 1 << 30
"""Offset of the epoch for the second draw."""


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
