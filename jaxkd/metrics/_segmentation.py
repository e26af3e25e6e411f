"""Metrics of semantic segmentation: `segmentation`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxkd._core import batches, checks
from jaxkd.metrics._classification import classification, included, is_class
from jaxkd.metrics._derived import derived, mean_of_present
from jaxkd.types import Context, Derived, Mean, Metrics

if TYPE_CHECKING:
    from jaxtyping import Array


def segmentation(context: Context, *, class_names: Sequence[str] | None = None) -> Metrics:
    """Metrics of a semantic segmentation over the labeled, unmasked pixels.

    Args:
      context: logits ``[batch, height, width, classes]`` of both models, and integer labels ``[batch, height, width]``.
        A label that is no class, such as 255, is excluded.
      class_names: name of each class; by default its number.

    Returns:
      The metrics of `classification` over pixels; ``mean_iou``, the mean over the classes of intersection over union,
      without classes that occur neither in the labels nor in the predictions; ``teacher_mean_iou`` of a teacher with
      logits of the same shape; and ``iou/NAME`` of each class, its intersection as the sum and its union as the count.

    Raises:
      ValueError: there are no logits, no labels for them, or not one name for each class.

    >>> logits = jax.nn.one_hot(jnp.array([[[0, 1], [1, 1]]]), 3)
    >>> context = Context({"logits": logits}, {}, {"label": jnp.array([[[0, 0], [1, 255]]])}, step=0)
    >>> from jaxkd.metrics import compute
    >>> found = compute(segmentation(context, class_names=("sky", "road", "car")))  # 1/2 for both classes
    >>> [found[name] for name in ("mean_iou", "iou/sky", "iou/road", "iou/car")]
    [0.5, 0.5, 0.5, nan]
    """
    logits, label = batches.lookup(context, "student/logits"), batches.lookup(context, "batch/label")
    if not is_class(label, logits) or logits.shape[-1] < 2:
        raise ValueError(
            "segmentation: expected logits [batch, height, width, classes] and integer labels [batch, height, width], "
            f"got {checks.shape(logits)} and {checks.shape(label)}. Resize the logits to the labels."
        )
    names = [*map(str, range(logits.shape[-1]))] if class_names is None else list(class_names)
    if len(set(names)) != logits.shape[-1] or len(names) != logits.shape[-1]:
        raise ValueError(
            f"segmentation, class_names: expected a different name for each of {logits.shape[-1]} classes, got {names}."
        )
    where = included(context, label, logits.shape[-1])
    found: dict[str, Mean | Derived] = dict(classification(context))
    iou = _iou(logits, label, where)
    found["mean_iou"] = derived(mean_of_present, iou)
    teacher = context.teacher.get("logits")
    if teacher is not None and teacher.shape == logits.shape:
        found["teacher_mean_iou"] = derived(mean_of_present, _iou(teacher, label, where))
    return found | {f"iou/{name}": Mean(iou.sum[i], iou.count[i]) for i, name in enumerate(names)}


def _iou(logits: Array, label: Array, where: Array) -> Mean:
    """Returns each class's intersection and union, in pixels."""
    classes, predicted = logits.shape[-1], jnp.argmax(logits, axis=-1)

    def pixels(where: Any, index: Array) -> Array:
        return jax.ops.segment_sum(jnp.ravel(where).astype(jnp.float32), jnp.ravel(index), classes)

    both = pixels(where & (predicted == label), label)
    return Mean(both, pixels(where, label) + pixels(where, predicted) - both)
