"""Mixtures of two images of a batch, and the labels of both.

Each example is mixed with the next one of the batch of all devices, in a circle, so that a mixture depends on the batch
that holds it, as no other transform does. Its share depends on the example alone. With the order of batches that
`jaxkd.data` gives, runs are replayed exactly, but outputs of a teacher on mixtures cannot be cached.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core import axes
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
    weight = share[:, None, None, None]
    mixed = weight * image.astype(jnp.float32) + (1 - weight) * _of_partners(batch, image).astype(jnp.float32)
    return _mixed(batch, mixed, share, classes)


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
    index = jnp.asarray(batch["index"])
    share = jnp.where(_of_partners(batch, index) == index, 1.0, 1 - jnp.mean(cut, axis=(1, 2), dtype=jnp.float32))
    return _mixed(batch, jnp.where(cut[..., None], _of_partners(batch, image), image), share, classes)


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


def _of_partners(batch: Batch, x: Array) -> Array:
    """Returns the rows of the next unmasked examples, in a circle over all devices.

    That of a masked example is its own. Of other devices only the first unmasked row is sent.

    >>> _of_partners({"mask": jnp.array([True, False, True, True])}, jnp.arange(4))
    Array([2, 1, 3, 0], dtype=int32)
    """
    own = jnp.arange(len(x), dtype=jnp.int32)
    mask = example_mask(batch)
    mask = jnp.ones(len(x), bool) if mask is None else jnp.asarray(mask)
    order = jnp.argsort(~mask, stable=True).astype(jnp.int32)  # positions of the unmasked examples come first
    rank, count = jnp.cumsum(mask) - 1, jnp.sum(mask)
    found = x[jnp.where(mask, order[(rank + 1) % jnp.maximum(count, 1)], own)]
    axis_name = axes.data_axis()
    if axis_name is None:
        return found
    firsts, some = (jax.lax.all_gather(value, axis_name) for value in (x[order[0]], count > 0))
    others = (jax.lax.axis_index(axis_name) + 1 + jnp.arange(len(some))) % len(some)  # the next device first, this last
    following = firsts[others[jnp.argmax(some[others])]]
    is_last = (mask & (rank == count - 1)).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(is_last, following[None], found)


def _covered(center: Array, side: Array, length: int) -> Array:
    """Returns True for the pixels of an axis that an interval covers."""
    pixels = jnp.arange(length)[None]
    begin, end = (jnp.round((center + sign * side / 2) * length)[:, None] for sign in (-1, 1))
    return (pixels >= begin) & (pixels < end)


def _mixed(batch: Batch, image: Array, share: Array, classes: int | None) -> dict[str, Any]:
    """Returns the batch with mixed images and the entries that say what was mixed."""
    found = {**batch, "image": image, "share": share}
    if "label" in batch:
        label = jnp.asarray(batch["label"])
        found["partner_label"] = partner_label = _of_partners(batch, label)
        if classes is not None:
            ours, theirs = (jax.nn.one_hot(of, classes, dtype=jnp.float32) for of in (label, partner_label))
            found["soft_label"] = share[:, None] * ours + (1 - share[:, None]) * theirs
    elif classes is not None:
        raise ValueError(
            f"classes: expected None, or a batch with the entry 'label', got {classes} and {sorted(batch)}."
        )
    return found
