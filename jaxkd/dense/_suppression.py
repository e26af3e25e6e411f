"""Suppression of boxes that overlap a better one.

Both functions are one greedy loop over the results, not over the boxes: each step takes the box with the largest
remaining score and lowers the scores of those that it overlaps. It holds one row of overlaps at a time, so that memory
grows with the number of boxes and not with its square, and no box has to be selected before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd.dense._boxes import box_iou, check_boxes

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Kept(NamedTuple):
    """The boxes that a suppression keeps, best first, in rows of a fixed number.

    Attributes:
      rows: numbers of the boxes among those given ``[..., most]``, 0 where masked.
      scores: their scores ``[..., most]``, 0 where masked.
      mask: True for the rows that hold a box ``[..., most]``; they come first.
    """

    rows: Int[Array, "*batch most"]
    scores: Float[Array, "*batch most"]
    mask: Bool[Array, "*batch most"]


def non_maximum_suppression(
    boxes: Float[Array, "*batch n 4"],
    scores: Float[Array, "*batch n"],
    *,
    labels: Int[Array, "*batch n"] | None = None,
    where: Bool[Array, "*batch n"] | None = None,
    threshold: float = 0.5,
    most: int = 100,
) -> Kept:
    """Keeps the boxes that no better box overlaps too much.

    Also known as: NMS.

    The box with the largest score is kept, all boxes whose IoU with it is greater than the threshold are removed, and
    so on. Of equal scores, the first box is taken.

    Args:
      boxes: boxes ``[..., n, 4]``.
      scores: any numbers, larger for better boxes ``[..., n]``.
      labels: classes ``[..., n]``: a box removes boxes of its class only. None for a single class.
      where: mask, True for the boxes to include ``[..., n]``. A box whose score is NaN or ``-inf`` is never included.
      threshold: IoU above which a box is removed.
      most: number of rows of the result. Further boxes, those with the smallest scores, are left out.

    Returns:
      `Kept` rows ``[..., most]`` in the order of their scores.

    Raises:
      ValueError: shapes do not fit, or the threshold is not from 0 to 1.

    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0], [5.0, 0.0, 8.0, 4.0]])
    >>> kept = non_maximum_suppression(boxes, jnp.array([0.8, 0.9, 0.3]), most=3)
    >>> kept.rows, kept.mask
    (Array([1, 2, 0], dtype=int32), Array([ True,  True, False], dtype=bool))
    """
    _check_threshold(threshold)

    def lower(scores: Array, overlaps: Array) -> Array:
        return jnp.where(overlaps > threshold, -jnp.inf, scores)

    return _greedy(boxes, scores, labels, where, most, lower)


def soft_non_maximum_suppression(
    boxes: Float[Array, "*batch n 4"],
    scores: Float[Array, "*batch n"],
    *,
    labels: Int[Array, "*batch n"] | None = None,
    where: Bool[Array, "*batch n"] | None = None,
    form: str = "gaussian",
    sigma: float = 0.5,
    threshold: float = 0.3,
    least_score: float = 0.001,
    most: int = 100,
) -> Kept:
    """Keeps boxes, with lower scores for those that better boxes overlap.

    Also known as: Soft-NMS.

    The box with the largest score is kept, and the score of every other box is multiplied by a factor of their IoU:
    ``exp(−IoU² / σ)`` in the form ``"gaussian"``, ``1 − IoU`` where the IoU is at least the threshold in the form
    ``"linear"``. Bodla et al., "Soft-NMS – Improving Object Detection With One Line of Code", ICCV 2017, equations 2
    and 3. Of equal scores, the first box is taken.

    Args:
      boxes: boxes ``[..., n, 4]``.
      scores: scores from 0 to 1, such as probabilities ``[..., n]``.
      labels: classes ``[..., n]``: a box lowers the scores of its class only. None for a single class.
      where: mask, True for the boxes to include ``[..., n]``. A box whose score is NaN or ``-inf`` is never included.
      form: ``"gaussian"`` or ``"linear"``.
      sigma: σ of the Gaussian form.
      threshold: least IoU that lowers a score, of the linear form.
      least_score: a box whose score has become smaller is removed.
      most: number of rows of the result. Further boxes, those with the smallest scores, are left out.

    Returns:
      `Kept` rows ``[..., most]`` with the lowered scores, in their order.

    Raises:
      ValueError: shapes do not fit, there is no such form, or a number is out of range.

    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0], [5.0, 0.0, 8.0, 4.0]])
    >>> kept = soft_non_maximum_suppression(boxes, jnp.array([0.9, 0.8, 0.5]), form="linear", most=3)
    >>> kept.rows, kept.scores
    (Array([0, 2, 1], dtype=int32), Array([0.9, 0.5, 0.4], dtype=float32))
    """
    if form not in ("gaussian", "linear"):
        raise ValueError(f"form: expected 'gaussian' or 'linear', got {form!r}.")
    if not sigma > 0:
        raise ValueError(f"sigma: expected a positive number, got {sigma}.")
    _check_threshold(threshold)

    def lower(scores: Array, overlaps: Array) -> Array:
        if form == "gaussian":
            factor = jnp.exp(-(overlaps**2) / sigma)
        else:
            factor = jnp.where(overlaps >= threshold, 1 - overlaps, 1)
        # Without a product where nothing is lowered: a removed box has the score -inf.
        scores = jnp.where(overlaps > 0, scores * factor, scores)
        return jnp.where(scores >= least_score, scores, -jnp.inf)

    return _greedy(boxes, scores, labels, where, most, lower)


def _greedy(
    boxes: Array,
    scores: Array,
    labels: Array | None,
    where: Array | None,
    most: int,
    lower: Callable[[Array, Array], Array],
) -> Kept:
    """Takes the best box again and again.

    ``lower(scores, overlaps)`` returns the scores of the others, given their overlaps with it. An overlap is 0 with a
    box of another class. A score of -inf is that of a box that is taken, removed or masked.
    """
    check_boxes("boxes", boxes)
    labels = jnp.zeros(scores.shape, jnp.int32) if labels is None else labels
    where = jnp.ones(scores.shape, bool) if where is None else where
    for name, x in (("scores", scores), ("labels", labels), ("where", where)):
        if x.shape != boxes.shape[:-1] or not x.shape[-1]:
            raise ValueError(f"{name}: expected one for each of boxes {checks.shape(boxes)}, got {checks.shape(x)}.")
    if where.dtype != bool:
        raise ValueError(f"where: expected a boolean mask, got {checks.shape(where)}.")
    if most < 1:
        raise ValueError(f"most: expected at least 1, got {most}.")

    def of_image(boxes: Array, scores: Array, labels: Array, where: Array) -> tuple[Array, Array, Array]:
        def take(scores: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
            best = jnp.argmax(scores).astype(jnp.int32)
            overlaps = jnp.where(labels == labels[best], box_iou(boxes[best][None], boxes)[0], 0)
            # A box without area does not overlap itself, and is taken only once all the same.
            return lower(scores, overlaps).at[best].set(-jnp.inf), (best, scores[best])

        # Lowered by overlaps of 0, scores that are too small to begin with are removed.
        first = lower(jnp.where(where, scores, -jnp.inf), jnp.zeros_like(scores))
        _, (index, taken) = jax.lax.scan(take, first, length=most)
        exists = taken > -jnp.inf
        return jnp.where(exists, index, 0), jnp.where(exists, taken, 0), exists

    wide = jnp.promote_types(scores.dtype, jnp.float32)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores).astype(wide)
    boxes = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
    found = jnp.vectorize(of_image, signature="(n,4),(n),(n),(n)->(m),(m),(m)")(boxes, scores, labels, where)
    return Kept(*found)


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected an IoU from 0 to 1, got {threshold}.")
