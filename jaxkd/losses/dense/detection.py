"""Detection losses: classes with a background, boxes that the teacher bounds, features near the objects.

Boxes are ``(x0, y0, x1, y1)`` in any one unit. This file needs only jax and can be lifted out of the package as it
stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["class_weighted_cross_entropy", "bounded_regression", "imitation_mask", "feature_imitation"]


def class_weighted_cross_entropy(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    background_weight: float = 1.5,
    background: int = 0,
    temperature: float | Float[Array, ""] = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Class-weighted soft targets: ``−Σ_c w_c p_t,c log p_s,c`` with ``p = softmax(z / T)``.

    ``w_c`` is ``background_weight`` for the background and 1 for every object class. Chen et al., "Learning Efficient
    Object Detection Models with Knowledge Distillation", NIPS 2017, equation 3. The paper takes T = 1, as the
    teacher's confusion of objects and background is much of what it has to say; there is no factor T² here. As a
    cross-entropy, it is not 0 for a student that agrees: then it is the weighted entropy of the teacher.

    Args:
      student: logits ``[..., classes]`` of proposals or anchors.
      teacher: logits of the same shape. A class that is ``-inf`` for both adds nothing.
      background_weight: the weight of the background class.
      background: which class is the background.
      temperature: T > 0.
      where: True for the proposals that count ``[...]``.

    Returns:
      One value per proposal ``[...]``, in nats. Infinite where the student excludes a class that the teacher does not,
      with finite gradients.

    Raises:
      ValueError: shapes differ, dtypes are not floating, the background is no class, or T is not positive.

    >>> class_weighted_cross_entropy(jnp.zeros((1, 2)), jnp.zeros((1, 2))).round(4)  # (1.5 + 1) / 2 log 2
    Array([0.8664], dtype=float32)
    """
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    _same_shape(student, teacher)
    if student.ndim == 0 or not 0 <= background < student.shape[-1]:
        raise ValueError(
            f"background: expected one of the classes of student [..., classes] {list(student.shape)}, counted from 0, "
            f"got {background}."
        )
    where = _check_where(where, student.shape[:-1])
    if where is not None:
        student, teacher = (jnp.where(where[..., None], x, 0) for x in (student, teacher))
    scale = _temperature(temperature, student.dtype)
    (log_student, known_s), (log_teacher, known_t) = _log_softmax(student / scale), _log_softmax(teacher / scale)
    ones = jnp.ones_like(student)
    target = jnp.where(known_t, jnp.exp(log_teacher), 0) * ones.at[..., background].set(background_weight)
    # What is infinite is added as a constant: the product of the infinity and the target has no finite slope.
    infinite = jnp.where(jnp.any((target > 0) & ~known_s, axis=-1), jnp.inf, 0)
    return _drop(infinite - jnp.sum(target * log_student, axis=-1), where)


def bounded_regression(
    student: Float[Array, "*batch coordinates"],
    teacher: Float[Array, "*batch coordinates"],
    target: Float[Array, "*batch coordinates"],
    *,
    margin: float = 0.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Teacher-bounded regression: ``‖R_s − y‖²`` while ``‖R_s − y‖² + m > ‖R_t − y‖²``, and 0 once it is not.

    Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NIPS 2017, equation 4. A
    teacher's box may point the wrong way, so it is no target; its error is a bound, and a student that is better by
    the margin has nothing left to learn from it. The teacher has no gradient: it decides and is not compared with.

    Args:
      student: box regression ``[..., coordinates]``, usually four.
      teacher: that of the teacher, of the same shape.
      target: the true one, of the same shape.
      margin: m, in squared coordinates.
      where: True for the boxes that count ``[...]``: those of objects, since background has none.

    Returns:
      One value per box ``[...]``.

    Raises:
      ValueError: shapes differ, or a dtype is not floating point.

    >>> target, teacher = jnp.zeros((2, 4)), jnp.array([[1.0, 1.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    >>> bounded_regression(jnp.array([[2.0, 0.0, 0.0, 0.0]] * 2), teacher, target)
    Array([4., 0.], dtype=float32)
    """
    student, teacher, target = _upcast("student", student), _upcast("teacher", teacher), _upcast("target", target)
    if student.ndim == 0:
        raise ValueError(f"student: expected boxes [..., coordinates], got {list(student.shape)}.")
    _same_shape(student, teacher)
    _same_shape(student, target, name="target")
    where = _check_where(where, student.shape[:-1])
    if where is not None:
        student, teacher, target = (jnp.where(where[..., None], x, 0) for x in (student, teacher, target))
    # The difference of the errors as a product, which is exactly 0 for a student that agrees: two sums may be rounded
    # differently, and the loss jumps there.
    behind = jnp.sum((student - teacher) * (student + teacher - 2 * target), axis=-1)
    return _drop(jnp.where(behind + margin > 0, jnp.sum((student - target) ** 2, axis=-1), 0), where)


def imitation_mask(
    anchors: Float[Array, "height width k 4"],
    boxes: Float[Array, "batch n 4"],
    *,
    threshold: float = 0.5,
    box_where: Bool[Array, "batch n"] | None = None,
) -> Bool[Array, "batch height width"]:
    """Where to imitate: the positions with an anchor whose IoU with an object is above ``ψ max IoU``.

    For each box, the largest IoU with all anchors of the map is M; a position takes part if any of its anchors has an
    IoU greater than ψM with it, and the mask is the union over the boxes. Wang et al., "Distilling Object Detectors
    with Fine-Grained Feature Imitation", CVPR 2019, section 3.1. A larger ψ leaves fewer positions; ψ = 0 takes every
    position that touches the object at all.

    Args:
      anchors: the detector's anchor boxes at each position of the map ``[height, width, k, 4]``, in the boxes' unit.
      boxes: the objects of each image ``[batch, n, 4]``.
      threshold: ψ.
      box_where: True for the boxes that count ``[batch, n]``; the others are padding and may hold anything.

    Returns:
      True for the positions to imitate ``[batch, height, width]``. A box that no anchor overlaps, or of no area,
      contributes none.

    Raises:
      ValueError: shapes do not fit, or a dtype is not floating point.

    >>> anchors = jnp.array([[[[0.0, 0.0, 2.0, 2.0]], [[2.0, 0.0, 4.0, 2.0]], [[4.0, 0.0, 6.0, 2.0]]]])
    >>> imitation_mask(anchors, jnp.array([[[0.0, 0.0, 3.0, 2.0]]]), threshold=0.3)  # IoU 2/3, 1/4, 0
    Array([[[ True,  True, False]]], dtype=bool)
    """
    anchors, boxes = _upcast("anchors", anchors), _upcast("boxes", boxes)
    if anchors.ndim != 4 or anchors.shape[-1] != 4:
        raise ValueError(f"anchors: expected [height, width, k, 4], got {list(anchors.shape)}.")
    if boxes.ndim != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes: expected [batch, n, 4], got {list(boxes.shape)}.")
    box_where = _check_where(box_where, boxes.shape[:2], "box_where")
    if box_where is not None:
        boxes = jnp.where(box_where[..., None], boxes, 0)  # of no area

    def one(mask: Array, box: Array) -> tuple[Array, None]:
        """Adds one box of every image: their overlaps with all anchors at once are no more than a feature map."""
        overlap = _iou(box[:, None, None, None, :], anchors[None])
        most = jnp.max(overlap, axis=(1, 2, 3), keepdims=True, initial=0)
        return mask | jnp.any((overlap > threshold * most) & (overlap > 0), axis=-1), None

    # Made from the boxes, so that under shard_map it varies over the same axes as what it becomes.
    nothing = jnp.zeros((boxes.shape[0], *anchors.shape[:2]), bool) & (jnp.sum(boxes, axis=(1, 2)) > 0)[:, None, None]
    return jax.lax.scan(one, nothing, jnp.moveaxis(boxes, 1, 0))[0]


def feature_imitation(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height width channels"],
    mask: Bool[Array, "batch height width"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Feature imitation near objects: ``1 / (2 N_p) Σ (F_s − F_t)²`` over the N_p positions of the mask and channels.

    Wang et al., "Distilling Object Detectors with Fine-Grained Feature Imitation", CVPR 2019, section 3.2. There, N_p
    counts the positions of the whole batch; here each example has its own, so that an image with large objects
    weighs no more than one with small ones and a value does not depend on the others in the batch. For one image, or
    equal counts, the mean is the paper's.

    Args:
      student: a feature map ``[batch, height, width, channels]``; the paper adapts it by a learned convolution first.
      teacher: a feature map of the same shape.
      mask: True at the positions to imitate ``[batch, height, width]``, as `imitation_mask` finds them.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``, 0 where the mask is empty.

    Raises:
      ValueError: shapes differ, a dtype is not floating point, or the mask is no bool.

    >>> feature_imitation(2 * jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 3)), jnp.eye(2, dtype=bool)[None])
    Array([6.], dtype=float32)
    """
    student, teacher, mask = _upcast("student", student), _upcast("teacher", teacher), jnp.asarray(mask)
    if student.ndim != 4:
        raise ValueError(
            f"student: expected a feature map [batch, height, width, channels], got {list(student.shape)}."
        )
    _same_shape(student, teacher)
    if mask.dtype != jnp.bool_ or mask.shape != student.shape[:3]:
        raise ValueError(
            f"mask: expected bool{list(student.shape[:3])}, True at the positions to imitate, got {mask.dtype}"
            f"{list(mask.shape)}."
        )
    where = _check_where(where, student.shape[:1])
    if where is not None:
        mask = mask & where[:, None, None]
    student, teacher = (jnp.where(mask[..., None], x, 0) for x in (student, teacher))
    count = jnp.maximum(jnp.sum(mask, axis=(1, 2)), 1).astype(student.dtype)
    return jnp.sum((student - teacher) ** 2, axis=(1, 2, 3)) / (2 * count)


def _temperature(temperature: float | Array, dtype: jnp.dtype) -> Array:
    value = jnp.asarray(temperature, dtype)
    if value.shape != ():
        raise ValueError(f"temperature: expected a scalar, got {value.dtype}{list(value.shape)}.")
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:  # NaN is not
        raise ValueError(f"temperature: expected a positive number, got {temperature}.")
    return value


def _log_softmax(scores: Array) -> tuple[Array, Array]:
    """Over what is not ``-inf``, and what that is; finite also at the rest, and where nothing is left."""
    known = scores != -jnp.inf
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf))
    shifted = jnp.where(known, scores - jnp.where(top == -jnp.inf, 0, top), 0)
    total = jnp.sum(jnp.where(known, jnp.exp(shifted), 0), axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.where(total == 0, 1, total)), known


def _iou(a: Array, b: Array) -> Array:
    """Intersection over union of boxes along the last axis; 0 where there is no intersection."""

    def area(box: Array) -> Array:
        return jnp.maximum(box[..., 2] - box[..., 0], 0) * jnp.maximum(box[..., 3] - box[..., 1], 0)

    common = area(jnp.concatenate([jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])], axis=-1))
    return jnp.where(common > 0, common / jnp.where(common > 0, area(a) + area(b) - common, 1), 0)


def _upcast(name: str, x: Array) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: expected floating point, got {x.dtype}{list(x.shape)}.")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _same_shape(student: Array, other: Array, name: str = "teacher") -> None:
    if student.shape != other.shape:
        raise ValueError(
            f"{name}: expected the student's shape {list(student.shape)}, got {list(other.shape)}. Nothing is "
            "broadcast; select the same proposals, or adapt the features first."
        )


def _check_where(where: Array | None, shape: tuple[int, ...], name: str = "where") -> Array | None:
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != shape:
        raise ValueError(
            f"{name}: expected bool{list(shape)}, True for what counts, got {where.dtype}{list(where.shape)}."
        )
    return where


def _drop(values: Array, where: Array | None) -> Array:
    return values if where is None else jnp.where(where, values, 0)
