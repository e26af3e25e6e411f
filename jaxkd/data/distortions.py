"""Two independent distortions of an image, or one of each of two images: what self-distillation compares.

Augmentations are keyed by the example's ``epoch`` and ``index``. The second draw is that of an epoch that no run
reaches, so that it belongs to the example and its epoch as the first does: it can be replayed, and depends neither on
the batch nor on the number of devices.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxkd.data.augment import Batch, Transform

__all__ = ["two_views", "with_pair"]

_AGAIN = 1 << 30
"""Added to the epoch for the second draw."""


def two_views(augment: Transform, *, image: str = "image", view: str = "view") -> Transform:
    """A transform that gives two distortions of each image, as data-distortion guided self-distillation compares them.

    Xu & Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019. For
    `jaxkd.training.preprocess`, which runs it on the device as part of the step; `jaxkd.schemes.two_views` trains on
    what it gives.

    Args:
      augment: a batch transform that is keyed by the example, such as `random_crop_flip` with its seed, or several of
        them by `compose`. It runs twice, in full: normalisation belongs into it.
      image: the entry to distort.
      view: the new entry for the second distortion.

    Returns:
      A transform. What ``augment`` changes beside the image is that of the first distortion.

    Raises:
      ValueError: when it is called: the batch has no such image, or has such a view already.

    >>> import jax.numpy as jnp
    >>> from functools import partial
    >>> from jaxkd.data.augment import shift
    >>> image = jnp.arange(64, dtype=jnp.uint8).reshape(1, 8, 8, 1)
    >>> batch = {"image": image, "index": jnp.array([3]), "epoch": jnp.array([0])}
    >>> both = two_views(partial(shift, seed=0, pixels=3))(batch)
    >>> bool((both["image"] == both["view"]).all()), both["epoch"]
    (False, Array([0], dtype=int32))
    """
    return _TwoDraws(augment, image, image, view)


def with_pair(augment: Transform, *, image: str = "image", pair: str = "pair") -> Transform:
    """A transform that distorts an image and, by a draw of its own, the partner that is beside it.

    The partners of `SameClass` come as they are stored, like the images. Each example's partner is distorted
    independently, also where two examples have the same one.

    Args:
      augment: as for `two_views`.
      image: the entry to distort.
      pair: the other one.

    Returns:
      A transform.

    Raises:
      ValueError: when it is called: the batch has no such entries.

    >>> import jax.numpy as jnp
    >>> from functools import partial
    >>> from jaxkd.data.augment import normalize
    >>> batch = {"image": jnp.zeros((1, 2, 2, 1), jnp.uint8), "pair": jnp.full((1, 2, 2, 1), 255, jnp.uint8)}
    >>> found = with_pair(partial(normalize, mean=(0.0,), std=(1.0,)))(batch)
    >>> float(found["image"][0, 0, 0, 0]), float(found["pair"][0, 0, 0, 0])
    (0.0, 1.0)
    """
    return _TwoDraws(augment, image, pair, pair)


@dataclasses.dataclass(frozen=True)
class _TwoDraws:
    """A transform, and the same drawn again for another image."""

    augment: Transform
    image: str
    source: str
    target: str

    def __call__(self, batch: Batch) -> dict[str, Any]:
        missing = [name for name in (self.image, self.source) if name not in batch]
        if missing:
            raise ValueError(
                f"batch: expected {sorted({self.image, self.source})}, got {sorted(batch)}. Partners of the same class "
                "come from data.SameClass."
            )
        if self.target != self.source and self.target in batch:
            raise ValueError(f"batch: it has {self.target!r} already; give the second view another name.")
        again = {**batch, self.image: batch[self.source]}
        if "epoch" in batch:
            again["epoch"] = batch["epoch"] + _AGAIN
        return {**self.augment(batch), self.target: self.augment(again)[self.image]}
