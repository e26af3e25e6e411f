"""Segmentation losses: the classes of pixels, and the affinity of positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
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
    max_window: float | None = None,
    constant_norm: bool = False,
    where: Bool[Array, " batch"] | Bool[Array, "batch height width"] | None = None,
) -> Float[Array, " batch"]:
    """Mean squared difference of the cosines between positions of a map.

    Also known as: SKD (structured knowledge distillation), its pair-wise term; PA.

    ``mean_ij (a_ij(s) − a_ij(t))²``, ``a_ij`` the cosine between the features at i and j. Liu et al., "Structured
    Knowledge Distillation for Semantic Segmentation", CVPR 2019, section 3.1, over all ordered pairs of positions,
    including each with itself. The extended version (TPAMI 2020) pools β positions into a node of the affinity graph,
    as ``pool`` does. The authors' code pools by the maximum over windows of half the map, and its cosine divides by a
    norm without a gradient: it is ``max_window=0.5, constant_norm=True``, but for the 1e-8 that it adds to the norm.
    Their weight is 1, in their scripts 0.5.

    The affinities take ``nodes²`` elements for each image and network, with ``height · width / pool²`` nodes.

    Args:
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same batch; its channels, height and width may differ. The larger map is
        adaptive-average-pooled to the smaller.
      pool: side of the windows that are averaged to one position; it has to divide height and width.
      max_window: above 0 and at most 1, the sides of the windows of which each channel's maximum is one position, as a
        fraction of height and of width, rounded down. The last windows may be smaller: 0.5 gives 2 · 2 positions of a
        map of even sides, and 3 · 3 of 7 · 7. None takes no maximum.
      constant_norm: True gives the norms of the features no gradient. The value is the same.
      where: mask, True for the examples to include ``[batch]``, or for the student's positions ``[batch, height,
        width]``, such as those that are not void. Windows are averaged, and their maxima taken, over the included
        positions, and the mean is over the pairs of windows that have any.

    Returns:
      One value per example ``[batch]``. A position whose features have a norm up to 1e-12 has cosine 0 with every
      position, and gradient 0.

    Raises:
      ValueError: an input is not a floating-point feature map, the batches differ, the windows do not fit, or both
        ``pool`` and ``max_window`` are given.

    >>> student, teacher = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]]), jnp.ones((1, 1, 2, 3))
    >>> pair_affinity(student, teacher).round(4)  # two of four pairs: 0 in place of 1
    Array([0.5], dtype=float32)
    """
    student, teacher = (_checks.floating(n, x, _MAPS, rank=4) for n, x in (("student", student), ("teacher", teacher)))
    _checks.same_batch(student, teacher)
    where = _checks.mask(where, student.shape[:1], finer=student.shape[:3])
    student, teacher, where, positions = _numerics.mask_maps(where, student, teacher)
    student, teacher = _numerics.match_size(student, teacher)
    batch, height, width, _ = student.shape
    expected = f"a window that divides height and width {[height, width]}"
    pool = _checks.whole("pool", pool, expected=expected)
    if height % pool or width % pool:
        raise ValueError(f"pool: expected {expected}, got {pool}.")
    rows, columns = pool, pool
    if max_window is not None:
        expected = "a fraction above 0 and at most 1"
        part = _checks.number("max_window", max_window, expected, lambda x: (x > 0) & (x <= 1))
        part = _checks.static("max_window", part)
        if pool != 1:
            raise ValueError(f"max_window: expected None or pool=1, got {part} and pool={pool}.")
        rows, columns = (max(1, math.floor(side * part)) for side in (height, width))
    constant = _checks.flag("constant_norm", constant_norm)
    pooled = _windows_mean if max_window is None else _windows_max

    def affinity(x: Array) -> Array:
        x = pooled(x, rows, columns, positions)
        nodes = x.reshape(batch, math.prod(x.shape[1:3]), x.shape[-1])
        unit, none = _numerics.direction(nodes)
        if constant:
            unit = jnp.where(none, 0, nodes / jax.lax.stop_gradient(jnp.where(none, 1, _numerics.norm(nodes))))
        return _numerics.einsum("bic,bjc->bij", unit, unit)

    squares = (affinity(student) - affinity(teacher)) ** 2
    if positions is None:
        return _numerics.mask_values(jnp.mean(squares, axis=(1, 2)), where)
    # A window without positions has the cosine 0 in both networks: only the count has to exclude it.
    inside = _windows_max(positions[..., None].astype(squares.dtype), rows, columns, None)
    return jnp.sum(squares, axis=(1, 2)) / jnp.maximum(jnp.sum(inside, axis=(1, 2, 3)), 1) ** 2


def _windows_mean(x: Array, high: int, wide: int, positions: Array | None) -> Array:
    """Returns the means of windows, whose sides divide those of the map."""
    batch, height, width, channels = x.shape
    windows = (batch, height // high, high, width // wide, wide, channels)
    if positions is None:
        return jnp.mean(x.reshape(windows), axis=(2, 4))
    inside = positions[..., None]
    total = jnp.sum(jnp.where(inside, x, 0).reshape(windows), axis=(2, 4))
    return total / jnp.maximum(jnp.sum(inside.reshape(*windows[:-1], 1), axis=(2, 4)), 1)


def _windows_max(x: Array, high: int, wide: int, positions: Array | None) -> Array:
    """Returns the maxima of windows, the last maybe smaller; 0 of an empty one."""
    if positions is not None:
        x = jnp.where(positions[..., None], x, -jnp.inf)
    batch, height, width, channels = x.shape
    rows, columns = -(-height // high), -(-width // wide)
    missing = ((0, 0), (0, rows * high - height), (0, columns * wide - width), (0, 0))
    x = jnp.pad(x, missing, constant_values=-jnp.inf)
    top = jnp.max(x.reshape(batch, rows, high, columns, wide, channels), axis=(2, 4))
    return top if positions is None else jnp.where(top == -jnp.inf, 0, top)
