"""Distillation of a detector's outputs: classes and boxes of its anchors."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from jaxkd._core import batches, checks
from jaxkd._core.batches import lookup
from jaxkd.dense import box_iou, decode_boxes, encode_boxes, match_anchors, take_matched
from jaxkd.objectives import _checks
from jaxkd.objectives._compose import combine, replace, term
from jaxkd.objectives._dense._pyramid import aligned, pyramid
from jaxkd.objectives._projection import with_projection
from jaxkd.types import Array, Context, Objective, ObjectiveVars, Schedule

FORMS = ("softmax", "sigmoid")


def detector_kd(
    anchors: Array,
    *,
    teacher_anchors: Array | None = None,
    form: str = "softmax",
    teacher_form: str | None = None,
    level_map: int | Mapping[int, int] | None = None,
    boxes_path: str = "batch/boxes",
    box_mask_path: str = "batch/box_mask",
    where: str | None = None,
    background_weight: float = 1.5,
    temperature: float = 1.0,
    margin: float = 0.0,
    positive: float = 0.5,
    variances: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
    least_overlap: float = 0.5,
    soft_weight: float | Array | Schedule = 0.5,
    box_weight: float | Array | Schedule = 0.5,
    feature_weight: float | Array | Schedule = 0.5,
) -> Objective:
    """Distills classes, bounded boxes and hints of a detector.

    ``(1 − μ) L_soft + ν L_bounded + γ L_hint``. Chen et al., "Learning Efficient Object Detection Models with Knowledge
    Distillation", NIPS 2017, equations 2 to 6, with μ = ν = γ = 0.5 and T = 1. What the paper takes from the labels
    (the classes with the weight μ, and the smooth L1 loss of the boxes) is another objective beside this one.

    - L_soft is `jaxkd.losses.class_weighted_cross_entropy` of each anchor. A head of sigmoids has no background to
      weigh: its classes are compared by `jaxkd.losses.binary_kl`. The paper averages over the proposals that it
      samples. A one-stage detector samples none, so this is the sum over all anchors, divided by the number of those
      that hold an object by the teacher's probabilities (at least 1), of each image by itself.
    - L_bounded is `jaxkd.losses.bounded_regression` of the offsets of anchors that are matched with an object, the mean
      over those of an image.
    - L_hint is the mean squared error of the levels of a pyramid, behind a 1×1 convolution each.

    The two detectors may have other anchors: an anchor of the student's is compared with that of the teacher's with
    which its IoU is largest, whose box becomes offsets from the student's anchor. Anchors whose largest IoU is below
    ``least_overlap`` have no teacher and no loss. They may also have other forms of heads: the probabilities of the
    teacher's classes become logits of the student's form.

    Args:
      anchors: the student's anchors ``[n, 4]``, as from `jaxkd.dense.anchors`, in the boxes' unit.
      teacher_anchors: the teacher's ``[m, 4]``; the student's by default.
      form: of the student's ``logits``: ``"softmax"``, of which class 0 is the background, or ``"sigmoid"`` without it.
      teacher_form: of the teacher's; the student's by default.
      level_map: levels with hints, as for `pyramid`; None for none.
      boxes_path: path of the objects' boxes ``[batch, n, 4]``, in pixels of the image.
      box_mask_path: path of their mask ``[batch, n]``, True for those that exist.
      where: path of a mask ``[batch]``, True for the images whose boxes are known: the bound needs them. Classes and
        hints are those of all images.
      background_weight: weight of the background class in a softmax.
      temperature: T > 0 of the classes.
      margin: m of the bound, in squared offsets.
      positive: least IoU of an anchor with its object.
      variances: scales of the offsets, as of `jaxkd.dense.encode_boxes`.
      least_overlap: IoU from which anchors of two detectors are compared.
      soft_weight: 1 − μ, a number or a schedule of the step.
      box_weight: ν, a number or a schedule.
      feature_weight: γ, of the sum over the levels, a number or a schedule.

    Returns:
      An `Objective` with the parts ``classes``, ``boxes`` and, with a map of levels, ``hints``.

    Raises:
      ValueError: an argument is out of its range; or, from ``init``: outputs do not fit the anchors.

    >>> from jaxkd.dense import anchors
    >>> boxes = anchors((8, 8), strides=[4], sizes=[4], ratios=[1.0])
    >>> outputs = {"logits": jnp.zeros((1, 4, 3)), "offsets": jnp.zeros((1, 4, 4))}
    >>> batch = {"boxes": jnp.array([[[0.0, 0.0, 4.0, 4.0]]]), "box_mask": jnp.ones((1, 1), bool)}
    >>> out = detector_kd(boxes).apply({}, {}, Context(outputs, outputs, batch, 0), None)
    >>> sorted(out.terms), out.terms["boxes"]
    (['boxes', 'classes'], Array(0., dtype=float32))
    """
    name = "detector_kd"
    _checks.not_negative(name, background_weight=background_weight)
    _checks.positive(name, temperature=temperature)
    _checks.finite(name, margin=margin)
    _checks.share(name, positive=positive)
    heads = _Heads.of(name, anchors, teacher_anchors, (form, teacher_form or form), tuple(variances), least_overlap)
    parts = {
        "classes": _soft_classes(heads, background_weight, temperature, soft_weight),
        "boxes": _bounded(heads, (boxes_path, box_mask_path), where, margin, positive, box_weight),
    }
    if level_map is not None:
        hint = functools.partial(aligned, losses.hint_mse, kernel_size=1, weight=feature_weight)
        parts["hints"] = pyramid(hint, level_map)
    return combine(**parts)


def soft_detections(
    anchors: Array,
    *,
    teacher_anchors: Array | None = None,
    form: str = "softmax",
    teacher_form: str | None = None,
    background_weight: float = 1.0,
    temperature: float = 1.0,
    variances: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
    least_overlap: float = 0.5,
    soft_weight: float | Array | Schedule = 1.0,
    box_weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Distills the teacher's classes and boxes as targets, without any label.

    The soft classes are those of `detector_kd`. The target of an anchor's box is the teacher's, by the smooth L1 loss
    (δ = 1, summed over the four offsets), whose weight is the probability with which the teacher sees an object there;
    the mean has these weights. Nothing of it needs labels, so it is for images without boxes as for those with them. It
    is this library's reading of the simplest distillation of a one-stage detector; where labels exist, `detector_kd`
    has the teacher's box as a bound instead.

    Args:
      anchors: the student's anchors ``[n, 4]``, as from `jaxkd.dense.anchors`, in the boxes' unit.
      teacher_anchors: the teacher's ``[m, 4]``; the student's by default. See `detector_kd` for other anchors.
      form: of the student's ``logits``: ``"softmax"``, of which class 0 is the background, or ``"sigmoid"`` without it.
      teacher_form: of the teacher's; the student's by default.
      background_weight: weight of the background class in a softmax.
      temperature: T > 0 of the classes.
      variances: scales of the offsets, as of `jaxkd.dense.encode_boxes`.
      least_overlap: IoU from which anchors of two detectors are compared.
      soft_weight: weight of the classes, a number or a schedule of the step.
      box_weight: weight of the boxes, a number or a schedule of the step.

    Returns:
      An `Objective` with the parts ``classes`` and ``boxes``, and no parameters.

    Raises:
      ValueError: an argument is out of its range; or, from ``init``: outputs do not fit the anchors.

    >>> from jaxkd.dense import anchors
    >>> boxes = anchors((8, 8), strides=[4], sizes=[4], ratios=[1.0])
    >>> outputs = {"logits": jnp.zeros((1, 4, 3)), "offsets": jnp.zeros((1, 4, 4))}
    >>> student = {**outputs, "offsets": jnp.ones((1, 4, 4))}
    >>> soft_detections(boxes, soft_weight=0.0).apply({}, {}, Context(student, outputs, {}, 0), None).value.round(4)
    Array(2., dtype=float32)
    """
    name = "soft_detections"
    _checks.not_negative(name, background_weight=background_weight)
    _checks.positive(name, temperature=temperature)
    heads = _Heads.of(name, anchors, teacher_anchors, (form, teacher_form or form), tuple(variances), least_overlap)
    return combine(
        classes=_soft_classes(heads, background_weight, temperature, soft_weight),
        boxes=_teacher_boxes(heads, box_weight),
    )


class _Heads(NamedTuple):
    """Anchors and forms of the heads of both detectors."""

    name: str
    anchors: np.ndarray  # the student's [n, 4]
    teacher_anchors: np.ndarray | None  # the teacher's, or None for the same
    nearest: np.ndarray | None  # number of the teacher's anchor for each of the student's [n]
    compared: np.ndarray  # True for the student's anchors that have one [n]
    form: str
    teacher_form: str
    variances: tuple[float, ...]

    @classmethod
    def of(
        cls,
        name: str,
        anchors: Any,
        teacher_anchors: Any,
        forms: tuple[str, str],
        variances: tuple[float, ...],
        least_overlap: float,
    ) -> _Heads:
        for argument, value in zip(("form", "teacher_form"), forms, strict=True):
            if value not in FORMS:
                raise ValueError(f"{name}, {argument}: expected 'softmax' or 'sigmoid', got {value!r}.")
        _checks.share(name, least_overlap=least_overlap)
        for argument, value in (("anchors", anchors), ("teacher_anchors", teacher_anchors)):
            shape = np.shape(value)
            if value is not None and (len(shape) != 2 or shape[1] != 4 or not shape[0]):
                raise ValueError(f"{name}, {argument}: expected boxes [n, 4], n >= 1, got {list(shape)}.")
        own = np.asarray(anchors, np.float32)
        other = None if teacher_anchors is None else np.asarray(teacher_anchors, np.float32)
        if other is None or np.array_equal(own, other):
            return cls(name, own, None, None, np.ones(len(own), bool), *forms, variances)
        overlap, index = _nearest(own, other)
        compared = overlap >= max(least_overlap, 1e-9)
        if not compared.any():
            raise ValueError(
                f"{name}, teacher_anchors: expected some that overlap the student's with an IoU of at least "
                f"{least_overlap}; the largest IoU is {overlap.max():.3f}. Are both in pixels of the same image?"
            )
        return cls(name, own, other, index, compared, *forms, variances)

    @property
    def _theirs(self) -> np.ndarray:
        return self.anchors if self.teacher_anchors is None else self.teacher_anchors

    def teacher_logits(self, context: Context) -> Array:
        """Returns the teacher's logits of the student's anchors, in the student's form."""
        logits = _of_anchors(self.name, context, "teacher", "logits", self._theirs)
        logits = logits if self.nearest is None else logits[:, self.nearest]
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if self.form == self.teacher_form:
            return logits
        if self.form == "softmax":  # one class of a sigmoid is a softmax with the background's logit 0
            return jnp.pad(logits, ((0, 0), (0, 0), (1, 0)))
        probability = jnp.clip(jax.nn.softmax(logits, axis=-1)[..., 1:], 1e-6, 1 - 1e-6)
        return jnp.log(probability) - jnp.log1p(-probability)

    def teacher_offsets(self, context: Context) -> Array:
        """Returns the teacher's boxes as offsets from the student's anchors."""
        offsets = _of_anchors(self.name, context, "teacher", "offsets", self._theirs)
        if self.nearest is None or self.teacher_anchors is None:
            return offsets
        theirs = jnp.asarray(self.teacher_anchors[self.nearest])
        boxes = decode_boxes(offsets[:, self.nearest], theirs, variances=self.variances)
        return encode_boxes(boxes, jnp.asarray(self.anchors), variances=self.variances)

    def student(self, context: Context, output: str) -> Array:
        """Returns logits or offsets of the student."""
        return _of_anchors(self.name, context, "student", output, self.anchors)

    def objects(self, logits: Array) -> Array:
        """Returns the teacher's probability of an object at each anchor ``[batch, n]``."""
        if self.form == "softmax":
            held = 1 - jax.nn.softmax(logits, axis=-1)[..., 0]
        else:
            held = jnp.max(jax.nn.sigmoid(logits), axis=-1)
        return jnp.where(self.compared[None], held, 0)


def _nearest(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest IoU of each box with others, and the number of that other."""
    rows = jax.jit(lambda a, b: jax.lax.map(lambda box: jnp.stack(_best(box, b)), a, batch_size=256))
    overlap, index = np.asarray(rows(own, other)).T
    return overlap, index.astype(np.int32)


def _best(box: Array, others: Array) -> tuple[Array, Array]:
    overlaps = box_iou(box[None], others)[0]
    return jnp.max(overlaps), jnp.argmax(overlaps).astype(overlaps.dtype)  # exact below 2^24 anchors


def _of_anchors(name: str, context: Context, side: str, output: str, anchors: np.ndarray) -> Array:
    """Returns logits or offsets of a detector, 0 for masked images."""
    path = f"{side}/{output}"
    x = lookup(context, path)
    if len(x.shape) != 3 or x.shape[1] != len(anchors) or (output == "offsets" and x.shape[2] != 4):
        last = "4" if output == "offsets" else "classes"
        advice = "Anchors are those of one size of images; teacher_anchors= are those of a teacher with other ones."
        raise ValueError(f"{name}, {path}: expected [batch, {len(anchors)}, {last}], got {checks.shape(x)}. {advice}")
    mask = batches.example_mask(context.batch)
    return x if mask is None else jnp.where(mask[:, None, None], x, 0)


def _soft_classes(heads: _Heads, background_weight: Any, temperature: Any, weight: Any) -> Objective:
    """Compares the classes of all anchors, over the number of objects' anchors."""

    def values(context: Context) -> Array:
        student, teacher = heads.student(context, "logits"), heads.teacher_logits(context)
        if student.shape != teacher.shape:
            raise ValueError(
                f"{heads.name}: expected as many classes of both detectors, got {checks.shape(student)} for the "
                f"student ({heads.form}) and {checks.shape(teacher)} for the teacher ({heads.teacher_form}), in the "
                "student's form. Only a softmax has a class of the background."
            )
        options = {"temperature": temperature, "where": jnp.broadcast_to(heads.compared[None], student.shape[:2])}
        if heads.form == "softmax":
            loss = losses.class_weighted_cross_entropy(student, teacher, background_weight=background_weight, **options)
        else:
            loss = losses.binary_kl(student, teacher, **options)
        return jnp.sum(loss, axis=1) / jnp.maximum(jnp.sum(heads.objects(teacher), axis=1), 1)

    return _per_image(values, weight)


def _bounded(
    heads: _Heads, paths: tuple[str, str], where: str | None, margin: float, positive: float, weight: Any
) -> Objective:
    """Squared error of matched boxes where it exceeds the teacher's, their mean."""

    def values(context: Context) -> Array:
        student, teacher = heads.student(context, "offsets"), heads.teacher_offsets(context)
        boxes, exist = (lookup(context, path) for path in paths)
        anchors = jnp.asarray(heads.anchors)
        matches = match_anchors(anchors, boxes, box_where=exist, positive=positive, negative=0.0)
        matched = matches.matched & jnp.asarray(heads.compared)[None]
        goal = encode_boxes(take_matched(boxes, matches), anchors, variances=heads.variances)
        target = jnp.where(matched[..., None], goal, 0)
        loss = losses.bounded_regression(student, teacher, target, margin=margin, where=matched)
        return jnp.sum(loss, axis=1) / jnp.maximum(jnp.sum(matched, axis=1, dtype=loss.dtype), 1)

    return _per_image(values, weight, where)


def _teacher_boxes(heads: _Heads, weight: Any) -> Objective:
    """Smooth L1 loss to the teacher's boxes, weighted by its probability of an object."""

    def values(context: Context) -> Array:
        student, teacher = heads.student(context, "offsets"), heads.teacher_offsets(context)
        held = heads.objects(heads.teacher_logits(context))
        loss = losses.smooth_l1(student, teacher)
        return jnp.sum(held * loss, axis=1) / jnp.maximum(jnp.sum(held, axis=1), 1)

    return _per_image(values, weight)


def _per_image(values: Any, weight: Any, where: str | None = None) -> Objective:
    """Returns the objective of a function from the context to a value of each image."""
    path = "student/values_of_anchors"

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        del params, key
        return replace(context, {path: values(context)}), state

    return with_projection(
        lambda key, context: ObjectiveVars(), change, term(lambda x: x, path, weight=weight, where=where)
    )
