"""The labels' objective of a detector: classes and boxes of matched anchors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxkd import dense, losses
from jaxkd._core import checks
from jaxkd._core.batches import example_mask, lookup
from jaxkd.objectives._checks import not_negative
from jaxkd.objectives._compose import at_step, batch_mask, reduce_values
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars, Schedule

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def detection(
    anchors: Float[Array, "n 4"],
    *,
    form: str = "softmax",
    where: str | None = None,
    weight: float | Array | Schedule = 1.0,
    box_weight: float | Array | Schedule = 1.0,
    logits_path: str = "student/logits",
    offsets_path: str = "student/offsets",
    boxes_path: str = "batch/boxes",
    label_path: str = "batch/box_label",
    box_mask_path: str = "batch/box_mask",
    positive: float = 0.5,
    negative: float = 0.4,
    variances: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
    negatives: float | None = 3.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    beta: float = 1.0,
) -> Objective:
    """Builds the objective of a one-stage detector from labeled boxes.

    Also known as: SSD loss (MultiBox), the form ``"softmax"``; RetinaNet's loss, the form ``"sigmoid"``.

    ``1 / max(1, m) (Σ_classes + box_weight · Σ_boxes)`` of each image, where m is the number of its matched anchors
    (`jaxkd.dense.match_anchors`). The classes of anchors have the cross-entropy with a background (Liu et al., "SSD:
    Single Shot MultiBox Detector", ECCV 2016, section 2.2) or the focal loss of sigmoids (Lin et al., "Focal Loss for
    Dense Object Detection", ICCV 2017), the offsets of matched anchors the smooth L1 distance of both.

    The papers divide by the number of matched anchors of the whole batch, so that an image's part depends on the images
    beside it, and the SSD leaves out images without an object. Here every image has its own number, so that no loss of
    an image depends on the batch or its size, and an image without objects is background: its anchors count, divided by
    1. For one image, or equal numbers, the mean is the papers' value.

    Args:
      anchors: the detector's anchors ``[n, 4]`` in pixels, as from `jaxkd.dense.anchors`.
      form: ``"softmax"`` for logits whose class 0 is the background, ``"sigmoid"`` for logits without a background.
      where: path of a mask ``[batch]``, True for the images whose boxes are known; all by default.
      weight: a number, or an optax schedule of the step.
      box_weight: weight of the boxes beside the classes, likewise.
      logits_path: path of the logits ``[batch, n, classes]``.
      offsets_path: path of the boxes as offsets from the anchors ``[batch, n, 4]``.
      boxes_path: path of the objects' boxes ``[batch, m, 4]``, in pixels.
      label_path: path of the objects' classes ``[batch, m]``, from 0, without the background.
      box_mask_path: path of the mask of boxes ``[batch, m]``, True for those that exist.
      positive: least IoU of an anchor with its object.
      negative: IoU below which an anchor is background.
      variances: scales of the offsets, as of `jaxkd.dense.encode_boxes`.
      negatives: of the form ``"softmax"``, how many anchors of the background count for each matched one: those with
        the largest loss. None for all of them, as in the form ``"sigmoid"``.
      alpha: α of `jaxkd.losses.sigmoid_focal`, of the form ``"sigmoid"``.
      gamma: γ of the same.
      beta: β of `jaxkd.losses.smooth_l1`.

    Returns:
      An `Objective` without parameters or state. Its metrics are the loss, its weight, the parts ``classes`` and
      ``boxes``, and ``matched``, the number of matched anchors of an image. A label that is no class gives NaN.

    Raises:
      ValueError: there is no such form, or from ``init``: a path does not exist, or shapes do not fit.

    >>> anchors = dense.anchors((8, 8), strides=[4], sizes=[4], ratios=[1.0])
    >>> objective = detection(anchors, form="sigmoid")
    >>> outputs = {"logits": jnp.zeros((1, 4, 2)), "offsets": jnp.zeros((1, 4, 4))}
    >>> boxes = {"boxes": anchors[None, :1], "box_label": jnp.array([[1]]), "box_mask": jnp.array([[True]])}
    >>> out = jax.jit(lambda step: objective.apply({}, {}, Context(outputs, {}, boxes, step), None))(0)
    >>> out.value.round(4), out.metrics["boxes"].sum  # log 2 / 4 (1/4 + 7 · 3/4)
    (Array(0.9531, dtype=float32), Array(0., dtype=float32))
    """
    if form not in ("softmax", "sigmoid"):
        raise ValueError(f"detection, form: expected 'softmax' or 'sigmoid', got {form!r}.")
    if negatives is not None:
        not_negative("detection", negatives=negatives)
    anchors = jnp.asarray(anchors)

    def parts(context: Context) -> tuple[Array, Array, Array]:
        """Returns the losses of classes and boxes and the matched anchors of each image."""
        logits, offsets, boxes, label, exists = _read(
            context, anchors, logits_path, offsets_path, boxes_path, label_path, box_mask_path
        )
        matches = dense.match_anchors(anchors, boxes, box_where=exists, positive=positive, negative=negative)
        count = jnp.maximum(jnp.sum(matches.matched, axis=-1), 1)
        classes = logits.shape[-1] - (form == "softmax")
        known = (label >= 0) & (label < classes)
        label = jnp.where(known, label, classes)
        target = dense.take_matched(label, matches)
        if form == "softmax":
            # 1 + a label that is no class is not a class of the logits either, and gives NaN.
            target = jnp.where(matches.matched, target + 1, 0)
            values = losses.cross_entropy(logits, target, where=~matches.ignored)
            included = ~matches.ignored
            if negatives is not None:
                hard = _hardest(values, included & ~matches.matched, jnp.ceil(negatives * count))
                included = matches.matched | hard
            values = jnp.where(included, values, 0)
        else:
            unknown = jnp.where(target == classes, -1, 0)[..., None]
            hot = jax.nn.one_hot(target, classes, dtype=jnp.int32) + unknown
            hot = jnp.where(matches.matched[..., None], hot, 0)
            values = losses.sigmoid_focal(logits, hot, alpha=alpha, gamma=gamma, where=~matches.ignored)
        goal = dense.encode_boxes(dense.take_matched(boxes, matches), anchors, variances=variances)
        distances = losses.smooth_l1(offsets, goal, beta=beta, where=matches.matched)
        return jnp.sum(values, axis=-1) / count, jnp.sum(distances, axis=-1) / count, jnp.sum(matches.matched, axis=-1)

    def init(key: Array, context: Context) -> ObjectiveVars:
        del key
        shapes = jax.eval_shape(parts, context._replace(axis_name=None))
        batch_mask(context, where, shapes[0].shape, (), "detection")
        return ObjectiveVars()

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del params, key
        of_classes, of_boxes, matched = parts(context)
        values = of_classes + at_step(box_weight, context.step) * of_boxes
        extra = {"classes": of_classes, "boxes": of_boxes, "matched": matched.astype(values.dtype)}
        mask = batch_mask(context, where, values.shape, (), "detection")
        return reduce_values(values, mask, weight, context, state, **extra)

    return Objective(init, apply)


def _read(
    context: Context, anchors: Array, logits_path: str, offsets_path: str, *paths: str
) -> tuple[
    Float[Array, "batch n classes"],
    Float[Array, "batch n 4"],
    Float[Array, "batch m 4"],
    Int[Array, "batch m"],
    Bool[Array, "batch m"],
]:
    """Returns logits, offsets, boxes, labels and their mask, with 0 in masked rows."""
    logits, offsets = lookup(context, logits_path), lookup(context, offsets_path)
    for path, x in ((logits_path, logits), (offsets_path, offsets)):
        if x.ndim != 3 or x.shape[1] != anchors.shape[0]:
            raise ValueError(
                f"{path}: expected a row for each of the {anchors.shape[0]} anchors [batch, {anchors.shape[0]}, ...], "
                f"got {checks.shape(x)}. Anchors, images and detector have to agree in image size, strides and the "
                "number of anchors at a position."
            )
    boxes, label, exists = (lookup(context, path) for path in paths)
    rows = boxes.shape[:-1]
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or rows[0] != logits.shape[0]:
        raise ValueError(f"{paths[0]}: expected boxes [{logits.shape[0]}, n, 4], got {checks.shape(boxes)}.")
    if label.shape != rows or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"{paths[1]}: expected an integer class for each box {list(rows)}, got {checks.shape(label)}.")
    if exists.shape != rows or exists.dtype != bool:
        raise ValueError(f"{paths[2]}: expected bool{list(rows)}, True for boxes, got {checks.shape(exists)}.")
    mask = example_mask(context.batch)
    if mask is not None:
        # Masked images may hold NaN, which would reach gradients through a product with 0.
        logits, offsets = (jnp.where(mask[:, None, None], x, 0) for x in (logits, offsets))
        exists = exists & mask[:, None]
    return logits, offsets, jnp.where(exists[..., None], boxes, 0), jnp.where(exists, label, 0), exists


def _hardest(
    values: Float[Array, "batch n"], candidates: Bool[Array, "batch n"], count: Float[Array, " batch"]
) -> Bool[Array, "batch n"]:
    """Returns the candidates with the largest values of each row, first ones first.

    >>> _hardest(jnp.array([[1.0, 3.0, 2.0, 2.0]]), jnp.array([[True, False, True, True]]), jnp.array([1]))
    Array([[False, False,  True, False]], dtype=bool)
    """
    order = jnp.argsort(jnp.where(candidates, -jax.lax.stop_gradient(values), jnp.inf), axis=-1, stable=True)
    return candidates & (jnp.argsort(order, axis=-1) < count[:, None])
