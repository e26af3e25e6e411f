"""Mixtures of two images of a batch, and the labels of both.

Each example is mixed with the next one of its batch, in a circle, so that a mixture depends on the batch that holds it,
as no other transform does. Its share depends on the example alone. With the order of batches that `jaxkd.data` gives,
runs are replayed exactly, but outputs of a teacher on mixtures cannot be cached.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core.batches import example_mask
from jaxkd.data._transforms import example_keys
from jaxkd.data.vision._images import get_images
from jaxkd.types import Array, Batch

_PURPOSE = 0x6D6978  # an arbitrary number


def mixup(batch: Batch, *, seed: Any, alpha: float = 1.0, classes: int | None = None, view: int = 0) -> dict[str, Any]:
    """Returns a batch of mixtures ``λ x_i + (1 − λ) x_j`` of two images each.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, equation 1, with a λ for each example. With
    the default λ is uniform, as in function matching: Beyer et al., "Knowledge distillation: A good teacher is patient
    and consistent", CVPR 2022. The loss of a mixture, ``λ L(y_i) + (1 − λ) L(y_j)``, is that of the labels
    ``soft_label`` for `jaxkd.losses.soft_cross_entropy` and `jaxkd.losses.decoupled_kd`. Losses that read no labels
    take mixtures as they are.

    Args:
      batch: batch with ``image`` ``[batch, height, width, channels]``, ``index`` and ``epoch`` ``[batch]``. Masked
        examples are mixed with none.
      seed: seed of the run, an integer; it may be traced.
      alpha: α of the distribution Beta(α, α) of λ.
      classes: number of classes, for ``soft_label``; None for no such entry.
      view: number of the draw, where an example is drawn several times in an epoch.

    Returns:
      The batch with ``image`` in float32; ``share``, λ ``[batch]``; where it has a ``label``, ``partner_label``, y_j;
      and with ``classes`` ``soft_label``, float32 ``[batch, classes]``.

    Raises:
      ValueError: the images are not ``[batch, height, width, channels]``, the batch lacks ``index`` or ``epoch``, or α
        is not positive.

    >>> image = jnp.arange(2, dtype=jnp.float32).reshape(2, 1, 1, 1)
    >>> batch = {"image": image, "label": jnp.arange(2), "index": jnp.arange(2), "epoch": jnp.zeros(2, int)}
    >>> mixed = mixup(batch, seed=0, classes=2)
    >>> bool(jnp.allclose(mixed["image"][:, 0, 0, 0], mixed["soft_label"][:, 1])), mixed["partner_label"]
    (True, Array([1, 0], dtype=int32))
    """
    image = get_images(batch)
    share = _shares(_keys(batch, seed, view)[:, 0], alpha)
    partner = _partners(batch, len(image))
    weight = share[:, None, None, None]
    wide = image.astype(jnp.float32)
    return _mixed(batch, weight * wide + (1 - weight) * wide[partner], share, partner, classes)


def cutmix(batch: Batch, *, seed: Any, alpha: float = 1.0, classes: int | None = None, view: int = 0) -> dict[str, Any]:
    """Returns a batch of images, each with a rectangle of another image.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019,
    equations 1 and 2: the rectangle has the shape of the image, an area of ``1 − λ`` before it is clipped, and a
    uniform center; λ is then the share of the pixels that are left.

    Args:
      batch: batch as for `mixup`.
      seed: seed of the run, an integer; it may be traced.
      alpha: α of the distribution Beta(α, α) of λ.
      classes: number of classes, for ``soft_label``; None for no such entry.
      view: number of the draw, where an example is drawn several times in an epoch.

    Returns:
      The batch with ``image`` of the same dtype, and the entries of `mixup`.

    Raises:
      ValueError: as for `mixup`.

    >>> image = jnp.arange(2, dtype=jnp.uint8).reshape(2, 1, 1, 1) * jnp.ones((1, 4, 4, 1), jnp.uint8)
    >>> batch = {"image": image, "index": jnp.arange(2), "epoch": jnp.zeros(2, int)}
    >>> mixed = cutmix(batch, seed=0)
    >>> bool(jnp.allclose(1 - mixed["image"][1].mean(), 1 - mixed["share"][1]))
    True
    """
    image = get_images(batch)
    keys = _keys(batch, seed, view)
    side = jnp.sqrt(1 - _shares(keys[:, 0], alpha))
    center = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys[:, 1])
    inside = [_covered(center[:, axis], side, image.shape[1 + axis]) for axis in (0, 1)]
    cut = inside[0][:, :, None] & inside[1][:, None, :]
    partner = _partners(batch, len(image))
    share = jnp.where(partner == jnp.arange(len(image)), 1.0, 1 - jnp.mean(cut, axis=(1, 2), dtype=jnp.float32))
    return _mixed(batch, jnp.where(cut[..., None], image[partner], image), share, partner, classes)


def _keys(batch: Batch, seed: Any, view: int) -> Array:
    """Returns two keys per example, which no other transform of the seed draws with."""
    keys = example_keys(batch, seed=seed, view=view)
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, _PURPOSE), 2))(keys)


def _shares(keys: Array, alpha: float) -> Array:
    """Draws λ for each example."""
    if not alpha > 0:
        raise ValueError(f"alpha: expected a positive number, α of Beta(α, α), got {alpha}.")
    if alpha == 1:  # Beta(1, 1) is uniform, without the rejections of a gamma distribution
        return jax.vmap(jax.random.uniform)(keys)
    return jax.vmap(lambda key: jax.random.beta(key, alpha, alpha, dtype=jnp.float32))(keys)


def _partners(batch: Batch, count: int) -> Array:
    """Returns the position of the next unmasked example, in a circle.

    That of a masked example is its own.

    >>> _partners({"mask": jnp.array([True, False, True, True])}, 4)
    Array([2, 1, 3, 0], dtype=int32)
    """
    own = jnp.arange(count, dtype=jnp.int32)
    mask = example_mask(batch)
    if mask is None:
        return jnp.roll(own, -1)
    mask = jnp.asarray(mask)
    order = jnp.argsort(~mask, stable=True).astype(jnp.int32)  # positions of the unmasked examples come first
    rank = jnp.cumsum(mask) - 1
    return jnp.where(mask, order[(rank + 1) % jnp.maximum(jnp.sum(mask), 1)], own)


def _covered(center: Array, side: Array, length: int) -> Array:
    """Returns True for the pixels of an axis that an interval covers."""
    pixels = jnp.arange(length)[None]
    begin, end = (jnp.round((center + sign * side / 2) * length)[:, None] for sign in (-1, 1))
    return (pixels >= begin) & (pixels < end)


def _mixed(batch: Batch, image: Array, share: Array, partner: Array, classes: int | None) -> dict[str, Any]:
    """Returns the batch with mixed images and the entries that say what was mixed."""
    found = {**batch, "image": image, "share": share}
    if "label" in batch:
        label = jnp.asarray(batch["label"])
        found["partner_label"] = label[partner]
        if classes is not None:
            ours, theirs = (jax.nn.one_hot(of, classes, dtype=jnp.float32) for of in (label, label[partner]))
            found["soft_label"] = share[:, None] * ours + (1 - share[:, None]) * theirs
    elif classes is not None:
        raise ValueError(
            f"classes: expected None, or a batch with the entry 'label', got {classes} and {sorted(batch)}."
        )
    return found
