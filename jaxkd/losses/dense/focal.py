"""Distillation of detectors where the teacher attends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .. import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["focal_global"]


def focal_global(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height width channels"],
    boxes: Float[Array, "batch n 4"],
    *,
    temperature: float | Float[Array, ""] = 0.5,
    alpha: float | Float[Array, ""] = 1e-3,
    beta: float | Float[Array, ""] = 5e-4,
    gamma: float | Float[Array, ""] = 1e-3,
    box_where: Bool[Array, "batch n"] | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Weighted squared difference of maps in and around objects, and of attention.

    Also known as: FGD (focal and global distillation).

    ``α Σ M_f A^S A^C (F_t − F_s)² + β Σ M_b A^S A^C (F_t − F_s)² + γ (Σ |A^S_t − A^S_s| + Σ |A^C_t − A^C_s|)`` over a
    map, with the teacher's attention to positions ``A^S = HW softmax(mean_c |F| / T)`` and to channels
    ``A^C = C softmax(mean_hw |F| / T)``. At a position within a box, M_f is ``1 / (h w)`` of the smallest such box; at
    all others, M_b is one over their number. Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR
    2022, equations 3 to 10. Their global term compares the outputs of two learned context blocks: it is a term of its
    own, `hint_mse` of these outputs. As in the authors' code, a box covers the cells from ⌊x⌋ to ⌈x⌉ of its corners,
    both included, and h and w count these cells. The defaults are those of one-stage detectors with anchors; the paper
    has 5e-5, 2.5e-5 and 5e-5 for two-stage ones, and 1.6e-3, 8e-4 and 8e-4 for those without anchors.

    Args:
      student: a feature map ``[batch, height, width, channels]``; the paper adapts it by a learned 1 × 1 convolution.
      teacher: a feature map of the same shape.
      boxes: the objects of each image ``[batch, n, 4]``, as left, top, right and bottom in cells of the map: pixels
        divided by its stride. A box without area is none.
      temperature: T > 0 of both attentions.
      alpha: weight of the positions within boxes, at least 0.
      beta: weight of the other positions, at least 0.
      gamma: weight of the difference of attentions, at least 0.
      box_where: mask, True for the boxes to include ``[batch, n]``.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``. An image without boxes has its background and attention.

    Raises:
      ValueError: shapes do not fit, a dtype is not floating point, or a hyperparameter is out of its range.

    >>> student, teacher = jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))
    >>> boxes = jnp.array([[[0.0, 0.0, 0.5, 0.5]]])  # all four cells: weights of 1/4
    >>> focal_global(student, teacher, boxes, alpha=1.0, beta=1.0, gamma=1.0)
    Array([1.], dtype=float32)
    """
    student = _checks.floating("student", student, "maps [batch, height, width, channels]", rank=4)
    teacher = _checks.floating("teacher", teacher, "maps [batch, height, width, channels]")
    _checks.same_shape(student, teacher, "resize or project the maps first")
    boxes = _checks.floating("boxes", boxes, "boxes [batch, n, 4]")
    if boxes.ndim != 3 or boxes.shape[::2] != (student.shape[0], 4):
        raise ValueError(
            f"boxes: expected {[student.shape[0], 'n', 4]} for maps {list(student.shape)}, got {list(boxes.shape)}."
        )
    _checks.positive("temperature", temperature)
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        _checks.not_negative(name, value)
    where = _checks.mask(where, student.shape[:1])
    box_where = _checks.mask_or_ones(box_where, boxes.shape[:2], "box_where")
    student, teacher, boxes = _numerics.mask_inputs(where, student, teacher, boxes)
    (boxes,) = _numerics.mask_inputs(box_where, boxes)  # a masked box has no area
    _, height, width, channels = student.shape

    def attention(x: Array) -> tuple[Array, Array]:
        size = jnp.abs(x)
        positions = jnp.mean(size, axis=3).reshape(-1, height * width)
        positions = height * width * jax.nn.softmax(_numerics.soften(positions, temperature))
        of_channels = channels * jax.nn.softmax(_numerics.soften(jnp.mean(size, axis=(1, 2)), temperature))
        return positions.reshape(-1, height, width), of_channels

    (positions_s, channels_s), (positions_t, channels_t) = attention(student), attention(teacher)
    inside = _inside(jax.lax.stop_gradient(boxes), height, width)
    outside = inside == 0
    outside = outside / _numerics.count(outside, axis=(1, 2), dtype=student.dtype)[:, None, None]
    weights = positions_t * (alpha * inside + beta * outside)
    features = jnp.sum(weights[..., None] * channels_t[:, None, None, :] * (teacher - student) ** 2, axis=(1, 2, 3))
    apart = jnp.sum(jnp.abs(positions_t - positions_s), axis=(1, 2)) + jnp.sum(jnp.abs(channels_t - channels_s), axis=1)
    return _numerics.mask_values(features + gamma * apart, where)


def _inside(boxes: Array, height: int, width: int) -> Array:
    """Returns one over the cells of the smallest box at a position, 0 outside."""
    left, top, right, bottom = (boxes[..., i, None, None] for i in range(4))
    some = (right > left) & (bottom > top)
    row, column = jnp.arange(height)[None, None, :, None], jnp.arange(width)[None, None, None, :]
    left, top, right, bottom = jnp.floor(left), jnp.floor(top), jnp.ceil(right), jnp.ceil(bottom)
    within = some & (row >= top) & (row <= bottom) & (column >= left) & (column <= right)
    cells = jnp.where(some, (bottom + 1 - top) * (right + 1 - left), 1)
    return jnp.max(jnp.where(within, 1 / cells, 0), axis=1, initial=0)
