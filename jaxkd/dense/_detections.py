"""Detected objects from the outputs of a detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd.dense._boxes import VARIANCES, check_boxes, clip_boxes, decode_boxes
from jaxkd.dense._suppression import Kept, non_maximum_suppression

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Detections(NamedTuple):
    """Detected objects of each image, best first, in rows of a fixed number.

    Attributes:
      boxes: boxes ``(x0, y0, x1, y1)`` ``[..., most, 4]``.
      scores: probabilities ``[..., most]``.
      labels: classes of objects from 0, without the background ``[..., most]``.
      mask: True for the rows that hold an object ``[..., most]``; they come first, and all else of the others is 0.
    """

    boxes: Float[Array, "*batch most 4"]
    scores: Float[Array, "*batch most"]
    labels: Int[Array, "*batch most"]
    mask: Bool[Array, "*batch most"]


def detections(
    logits: Float[Array, "*batch n classes"],
    offsets: Float[Array, "*batch n 4"],
    anchors: Float[Array, "n 4"],
    *,
    form: str = "softmax",
    image_size: tuple[int, int] | None = None,
    variances: Sequence[float] = VARIANCES,
    least_score: float = 0.05,
    considered: int = 400,
    suppress: Callable[..., Kept] = non_maximum_suppression,
    most: int = 100,
) -> Detections:
    """Returns the objects that a detector's outputs stand for.

    Each class of each anchor is a candidate. Those with the best scores are decoded, cut to the image and suppressed
    class by class. Everything has a fixed shape, so that it may be part of an exported program.

    Args:
      logits: classes of the anchors ``[..., n, classes]``.
      offsets: offsets of boxes from anchors ``[..., n, 4]``.
      anchors: boxes ``[n, 4]``, as from `anchors`.
      form: ``"softmax"`` for logits whose class 0 is the background; ``"sigmoid"`` for logits without a background.
      image_size: height and width of the images in pixels, to which boxes are cut; None leaves them.
      variances: as of `encode_boxes`.
      least_score: candidates with smaller scores are left out.
      considered: number of candidates with the best scores that are decoded and suppressed.
      suppress: `non_maximum_suppression`, `soft_non_maximum_suppression` or either with other settings, by
        `functools.partial`.
      most: number of rows of the result.

    Returns:
      `Detections` in rows ``[..., most]``, in float32 or better.

    Raises:
      ValueError: shapes do not fit, there is no such form, or there is no class of objects.

    >>> prior = jnp.array([[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0]])
    >>> run = jax.jit(lambda logits, offsets: detections(logits, offsets, prior, form="sigmoid", most=2))
    >>> found = run(jnp.array([[0.0, 2.0], [3.0, -9.0]]), jnp.zeros((2, 4)))
    >>> found.labels, found.scores.round(3)
    (Array([0, 1], dtype=int32), Array([0.953, 0.881], dtype=float32))
    """
    if form not in ("softmax", "sigmoid"):
        raise ValueError(f"form: expected 'softmax' or 'sigmoid', got {form!r}.")
    check_boxes("offsets", offsets, "offsets [..., n, 4]")
    if logits.shape[:-1] != offsets.shape[:-1] or anchors.shape != offsets.shape[-2:]:
        raise ValueError(
            f"logits, offsets, anchors: expected one of each for every anchor, got {checks.shape(logits)}, "
            f"{checks.shape(offsets)}, {checks.shape(anchors)}."
        )
    if logits.shape[-1] < (2 if form == "softmax" else 1):
        raise ValueError(f"logits: expected a class of objects in the form {form!r}, got {checks.shape(logits)}.")
    if considered < 1:
        raise ValueError(f"considered: expected at least 1, got {considered}.")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    scores = jax.nn.softmax(logits, axis=-1)[..., 1:] if form == "softmax" else jax.nn.sigmoid(logits)
    classes = scores.shape[-1]

    def of_image(scores: Array, offsets: Array) -> tuple[Array, Array, Array, Array]:
        best, number = jax.lax.top_k(scores.reshape(-1), min(considered, scores.size))
        anchor, label = number // classes, (number % classes).astype(jnp.int32)
        boxes = decode_boxes(offsets[anchor], anchors[anchor], variances=variances)
        boxes = boxes if image_size is None else clip_boxes(boxes, image_size)
        kept = suppress(boxes, best, labels=label, where=best >= least_score, most=most)
        return (
            jnp.where(kept.mask[:, None], boxes[kept.rows], 0),
            kept.scores,
            jnp.where(kept.mask, label[kept.rows], 0),
            kept.mask,
        )

    return Detections(*jnp.vectorize(of_image, signature="(n,k),(n,4)->(m,4),(m),(m),(m)")(scores, offsets))
