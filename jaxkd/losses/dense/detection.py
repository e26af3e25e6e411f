"""Detection losses: classes with a background, boxes, features near the objects.

Boxes are ``(x0, y0, x1, y1)`` in any one unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .. import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["class_weighted_cross_entropy", "bounded_regression", "imitation_mask", "feature_imitation"]


_ADVICE = "select the same proposals, or adapt the features first"


def class_weighted_cross_entropy(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    background_weight: float = 1.5,
    background: int = 0,
    temperature: float | Float[Array, ""] = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy with the teacher's probabilities and a background weight.

    ``−Σ_c w_c p_t,c log p_s,c`` with ``p = softmax(z / T)``. ``w_c`` is ``background_weight`` for the background and 1
    for every object class. Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NIPS
    2017, equation 3. The paper has T = 1, since the teacher's confusion of objects and background is informative; there
    is no factor T². Its total is ``μ L_labels + (1 − μ) L_this`` for the classes, plus ν times `bounded_regression`
    beside the regression's own loss, plus γ times a hint on adapted features, with μ = ν = γ = 0.5. As a cross-entropy,
    it is not 0 for a student equal to its teacher but the weighted entropy of the teacher.

    Args:
      student: logits ``[..., classes]`` of proposals or anchors.
      teacher: logits of the same shape. A class that is ``-inf`` for both adds nothing.
      background_weight: weight of the background class.
      background: class index of the background.
      temperature: T > 0.
      where: mask, True for the proposals to include ``[...]``.

    Returns:
      One value per proposal ``[...]``, in nats. It is infinite where the student excludes a class that the teacher does
      not, with finite gradients.

    Raises:
      ValueError: shapes differ, a dtype is not floating point, the background is not a class, or T is not positive.

    >>> class_weighted_cross_entropy(jnp.zeros((1, 2)), jnp.zeros((1, 2))).round(4)  # (1.5 + 1) / 2 log 2
    Array([0.8664], dtype=float32)
    """
    student, teacher = _pair(student, teacher)
    classes = student.shape[-1] if student.ndim else 0
    _checks.several("student", student, classes)
    expected = f"one of the {classes} classes of student {list(student.shape)}, counted from 0"
    background = _checks.whole("background", background, least=0, most=classes - 1, expected=expected)
    _checks.not_negative("background_weight", background_weight)
    where = _checks.mask(where, student.shape[:-1])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    scale = _checks.temperature(temperature, student.dtype)
    log_student, finite_s = _numerics.log_softmax_finite(_numerics.soften(student, scale))
    log_teacher, finite_t = _numerics.log_softmax_finite(_numerics.soften(teacher, scale))
    ones = jnp.ones_like(student)
    target = jnp.where(finite_t, jnp.exp(log_teacher), 0) * ones.at[..., background].set(background_weight)
    values = _numerics.infinite_where(target, finite_s) - jnp.sum(target * log_student, axis=-1)
    return _numerics.mask_values(values, where)


def bounded_regression(
    student: Float[Array, "*batch coordinates"],
    teacher: Float[Array, "*batch coordinates"],
    target: Float[Array, "*batch coordinates"],
    *,
    margin: float = 0.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Squared error of boxes where it exceeds the teacher's.

    Also known as: teacher-bounded regression.

    ``‖R_s − y‖²`` where ``‖R_s − y‖² + m > ‖R_t − y‖²``, and 0 elsewhere. Chen et al., "Learning Efficient Object
    Detection Models with Knowledge Distillation", NIPS 2017, equation 4. A teacher's box may point the wrong way, so
    that it is no target; its error is a bound, and a student that is better by the margin has loss 0. The teacher has
    no gradient: it only selects the boxes. The paper adds ν = 0.5 times this to the smooth L1 loss of the true boxes.

    Args:
      student: box regression ``[..., coordinates]``, usually four.
      teacher: the teacher's boxes, of the same shape.
      target: the true boxes, of the same shape.
      margin: m, in the unit of squared coordinates.
      where: mask, True for the boxes to include ``[...]``: the boxes of objects.

    Returns:
      One value per box ``[...]``.

    Raises:
      ValueError: shapes differ, or a dtype is not floating point.

    >>> target, teacher = jnp.zeros((2, 4)), jnp.array([[1.0, 1.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    >>> bounded_regression(jnp.array([[2.0, 0.0, 0.0, 0.0]] * 2), teacher, target)
    Array([4., 0.], dtype=float32)
    """
    student = _checks.floating("student", student, "boxes [..., coordinates]", least_rank=1)
    target = _checks.floating("target", target, "boxes [..., coordinates]")
    student, teacher = _pair(student, teacher)
    _checks.same_shape(student, target, _ADVICE, name="target")
    _checks.finite("margin", margin)
    where = _checks.mask(where, student.shape[:-1])
    student, teacher, target = _numerics.mask_inputs(where, student, teacher, target)
    # The difference of the errors as a product is exactly 0 for a student equal to its teacher, where the loss jumps: a
    # difference of two sums would be a rounding error.
    excess = jnp.sum((student - teacher) * (student + teacher - 2 * target), axis=-1)
    return _numerics.mask_values(jnp.where(excess + margin > 0, jnp.sum((student - target) ** 2, axis=-1), 0), where)


def imitation_mask(
    anchors: Float[Array, "height width k 4"],
    boxes: Float[Array, "batch n 4"],
    *,
    threshold: float = 0.5,
    box_where: Bool[Array, "batch n"] | None = None,
) -> Bool[Array, "batch height width"]:
    """Returns the positions with an anchor that overlaps an object enough.

    Also known as: FGFI (fine-grained feature imitation), its imitation regions.

    For each box, the largest IoU with all anchors of the map is M; a position is selected if any of its anchors has an
    IoU greater than ψM with the box, and the mask is the union over the boxes. Wang et al., "Distilling Object
    Detectors with Fine-Grained Feature Imitation", CVPR 2019, section 3.1. A larger ψ selects fewer positions; ψ = 0
    selects every position that overlaps an object.

    Args:
      anchors: the detector's anchor boxes at each position of the map ``[height, width, k, 4]``, in the boxes' unit.
      boxes: the objects of each image ``[batch, n, 4]``.
      threshold: ψ, the fraction of the largest IoU that a position needs.
      box_where: mask, True for the boxes to include ``[batch, n]``; masked boxes may have any value.

    Returns:
      True for the positions to imitate ``[batch, height, width]``. A box that no anchor overlaps, or of no area,
      selects none.

    Raises:
      ValueError: shapes do not fit, or a dtype is not floating point.

    >>> anchors = jnp.array([[[[0.0, 0.0, 2.0, 2.0]], [[2.0, 0.0, 4.0, 2.0]], [[4.0, 0.0, 6.0, 2.0]]]])
    >>> imitation_mask(anchors, jnp.array([[[0.0, 0.0, 3.0, 2.0]]]), threshold=0.3)  # IoU 2/3, 1/4, 0
    Array([[[ True,  True, False]]], dtype=bool)
    """
    _checks.fraction("threshold", threshold)
    anchors = _checks.floating("anchors", anchors, "boxes [height, width, k, 4]")
    boxes = _checks.floating("boxes", boxes, "boxes [batch, n, 4]")
    if anchors.ndim != 4 or anchors.shape[-1] != 4:
        raise ValueError(f"anchors: expected [height, width, k, 4], got {list(anchors.shape)}.")
    if boxes.ndim != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes: expected [batch, n, 4], got {list(boxes.shape)}.")
    box_where = _checks.mask(box_where, boxes.shape[:2], "box_where")
    (boxes,) = _numerics.mask_inputs(box_where, boxes)  # a masked box has no area

    def one(mask: Array, box: Array) -> tuple[Array, None]:
        """Adds one box per image, whose overlaps are as large as a feature map."""
        overlap = _iou(box[:, None, None, None, :], anchors[None])
        most = jnp.max(overlap, axis=(1, 2, 3), keepdims=True, initial=0)
        return mask | jnp.any((overlap > threshold * most) & (overlap > 0), axis=-1), None

    # Made from the boxes: under shard_map, the carry of a scan must vary over the same axes as the result.
    empty = jnp.zeros((boxes.shape[0], *anchors.shape[:2]), bool) & (jnp.sum(boxes, axis=(1, 2)) > 0)[:, None, None]
    return jax.lax.scan(one, empty, jnp.moveaxis(boxes, 1, 0))[0]


def feature_imitation(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height width channels"],
    mask: Bool[Array, "batch height width"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Half the mean squared difference of features at the mask's positions.

    Also known as: FGFI (fine-grained feature imitation).

    ``1 / (2 N_p) Σ (F_s − F_t)²`` over the N_p positions of the mask and all channels. Wang et al., "Distilling Object
    Detectors with Fine-Grained Feature Imitation", CVPR 2019, section 3.2. There, N_p counts the positions of the whole
    batch; here each example has its own, so that images with large and small objects weigh the same and a value does
    not depend on the rest of the batch. For one image, or equal counts, the mean is the paper's; maps and mask reshaped
    to one image ``[1, batch · height, width, channels]`` give the paper's value for any counts. The authors' weight is
    0.01.

    Args:
      student: a feature map ``[batch, height, width, channels]``, which the paper first adapts by a learned 3×3
        convolution.
      teacher: a feature map of the same shape.
      mask: True at the positions to imitate ``[batch, height, width]``, as from `imitation_mask`.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``, 0 where the mask is empty.

    Raises:
      ValueError: shapes differ, a dtype is not floating point, or the mask is not boolean.

    >>> feature_imitation(2 * jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 3)), jnp.eye(2, dtype=bool)[None])
    Array([6.], dtype=float32)
    """
    student = _checks.floating("student", student, "maps [batch, height, width, channels]", rank=4)
    student, teacher = _pair(student, teacher)
    mask = _checks.mask_or_ones(jnp.asarray(mask), student.shape[:3], "mask")
    mask = mask & _checks.mask_or_ones(where, student.shape[:1])[:, None, None]
    student, teacher = _numerics.mask_inputs(mask, student, teacher)
    count = _numerics.count(mask, axis=(1, 2), dtype=student.dtype)
    return jnp.sum((student - teacher) ** 2, axis=(1, 2, 3)) / (2 * count)


def _pair(student: Array, teacher: Array) -> tuple[Array, Array]:
    """Returns arrays of one shape in float32 or better."""
    student, teacher = _checks.floating("student", student, "[...]"), _checks.floating("teacher", teacher, "[...]")
    _checks.same_shape(student, teacher, _ADVICE)
    return student, teacher


def _iou(a: Array, b: Array) -> Array:
    """Returns the intersection over union of boxes along the last axis."""

    def area(box: Array) -> Array:
        return jnp.maximum(box[..., 2] - box[..., 0], 0) * jnp.maximum(box[..., 3] - box[..., 1], 0)

    common = area(jnp.concatenate([jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])], axis=-1))
    return jnp.where(common > 0, common / jnp.where(common > 0, area(a) + area(b) - common, 1), 0)
