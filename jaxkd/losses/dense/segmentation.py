"""Segmentation losses: the classes of pixels, and the affinity of positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from .. import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["pixel_kl", "pair_affinity"]


_MAPS = "maps [batch, height, width, channels]"


def pixel_kl(
    student: Float[Array, "batch height width classes"],
    teacher: Float[Array, "batch height width classes"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    where: Bool[Array, "batch height width"] | None = None,
) -> Float[Array, "batch height width"]:
    """KL divergence between the softened probabilities of each pixel, times T².

    Also known as: SKD (structured knowledge distillation), its pixel-wise term; PI.

    ``T² KL(p_t ‖ p_s)`` with ``p = softmax(z / T)`` at each pixel. Liu et al., "Structured Knowledge Distillation for
    Semantic Segmentation", CVPR 2019, section 3.1, with T = 1; the paper's value is the mean over the pixels. Code that
    also divides by the number of classes is smaller by that factor. The authors' weight of 10 belongs to a sum over the
    images: at their batch of 8 it is 80 for the mean.

    Args:
      student: logits ``[batch, height, width, classes]``.
      teacher: logits of the same shape. A class that is ``-inf`` for both adds nothing.
      temperature: T > 0.
      where: mask, True for the pixels to include ``[batch, height, width]``, such as the labeled ones.

    Returns:
      One value per pixel ``[batch, height, width]``, in nats times T². It is infinite where the student excludes a
      class that the teacher does not, with finite gradients.

    Raises:
      ValueError: shapes differ (resize the logits first), there is one class (`binary_kl`), a dtype is not floating
        point, or T is not positive.

    >>> pixel_kl(jnp.zeros((1, 1, 1, 2)), jnp.log(jnp.array([[[[0.75, 0.25]]]]))).round(4)
    Array([[[0.1308]]], dtype=float32)
    """
    student, teacher = (_checks.floating(n, x, _MAPS, rank=4) for n, x in (("student", student), ("teacher", teacher)))
    _checks.same_shape(student, teacher, "resize the logits of one network, as for the labels")
    where = _checks.mask(where, student.shape[:3])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    _checks.several("student", student, student.shape[-1])
    scale = _checks.temperature(temperature, student.dtype)
    softened = (_numerics.soften(x, scale) for x in (teacher, student))
    return _numerics.mask_values(scale**2 * _numerics.softmax_kl_finite(*softened), where)


def pair_affinity(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height_t width_t channels_t"],
    *,
    pool: int = 1,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Mean squared difference of the cosines between positions of a map.

    Also known as: SKD (structured knowledge distillation), its pair-wise term; PA.

    ``mean_ij (a_ij(s) − a_ij(t))²``, ``a_ij`` the cosine between the features at i and j. Liu et al., "Structured
    Knowledge Distillation for Semantic Segmentation", CVPR 2019, section 3.1, over all ordered pairs of positions,
    including each with itself. The extended version (TPAMI 2020) pools β positions into a node of the affinity graph,
    as ``pool`` does. The authors' code differs: its cosine divides by a norm without a gradient, and it pools by the
    maximum over windows of half the map. Their weight is 1, in their scripts 0.5.

    The affinities take ``(height · width / pool²)²`` elements for each image and network.

    Args:
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same batch; its channels, height and width may differ. The larger map is
        adaptive-average-pooled to the smaller.
      pool: side of the windows that are averaged to one position; it has to divide height and width.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``. A position whose features have a norm up to 1e-12 has cosine 0 with every
      position, and gradient 0.

    Raises:
      ValueError: an input is not a floating-point feature map, the batches differ, or the windows do not fit.

    >>> student, teacher = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]]), jnp.ones((1, 1, 2, 3))
    >>> pair_affinity(student, teacher).round(4)  # two of four pairs: 0 in place of 1
    Array([0.5], dtype=float32)
    """
    student, teacher = (_checks.floating(n, x, _MAPS, rank=4) for n, x in (("student", student), ("teacher", teacher)))
    _checks.same_batch(student, teacher)
    where = _checks.mask(where, student.shape[:1])
    student, teacher = _numerics.match_size(*_numerics.mask_inputs(where, student, teacher))
    batch, height, width, _ = student.shape
    expected = f"a window that divides height and width {[height, width]}"
    pool = _checks.whole("pool", pool, expected=expected)
    if height % pool or width % pool:
        raise ValueError(f"pool: expected {expected}, got {pool}.")

    def affinity(x: Array) -> Array:
        x = jnp.mean(x.reshape(batch, height // pool, pool, width // pool, pool, x.shape[-1]), axis=(2, 4))
        unit = _numerics.direction(x)[0].reshape(batch, (height // pool) * (width // pool), x.shape[-1])
        return _numerics.einsum("bic,bjc->bij", unit, unit)

    return _numerics.mask_values(jnp.mean((affinity(student) - affinity(teacher)) ** 2, axis=(1, 2)), where)
