"""Metrics of classifiers: accuracy, cross-entropy, agreement with the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import batches
from jaxkd.metrics._means import from_values
from jaxkd.types import Batch, Context, Mean, Metrics

if TYPE_CHECKING:
    from jaxtyping import Array


def classification(context: Context) -> dict[str, Mean]:
    """Metrics of a distilled classifier, as far as they have a meaning.

    Args:
      context: outputs of both models, and the batch with optional integer labels and ``mask``.

    Returns:
      ``accuracy`` and ``nll`` (cross-entropy, in nats) of the student, if there are labels; ``teacher_accuracy``, if
      its logits are of the same classes; ``agreement``, the share of examples with the same prediction of student and
      teacher. Masked examples or tokens, and those whose label is no class, such as -1, 255 or -100, are excluded.
      Nothing is reported of a single logit, and no accuracy for labels that are no class numbers of these logits. See
      also `binary`, `multilabel` and `regression`.

    >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> context = Context({"logits": logits}, {"logits": -logits}, {"label": jnp.array([0, 0, -1])}, step=0)
    >>> from jaxkd.metrics import compute
    >>> found = compute(classification(context))
    >>> found["accuracy"], found["agreement"], found["teacher_accuracy"]
    (0.5, 0.0, 0.5)
    """
    student, teacher = context.student.get("logits"), context.teacher.get("logits")
    label, logits = context.batch.get("label"), teacher if student is None else student
    if logits is None or logits.ndim < 2 or logits.shape[-1] < 2:
        return {}
    label = label if label is not None and is_class(label, logits) else None
    classes = logits.shape[-1]
    where = batches.mask_of_shape(context, logits.shape[:-1]) if label is None else included(context, label, classes)
    found: dict[str, Mean] = {}
    if student is not None and label is not None:
        found["accuracy"] = from_values(jnp.equal(jnp.argmax(student, axis=-1), label), where)
        found["nll"] = from_values(losses.cross_entropy(student, label, where=where), where)
    if teacher is None or teacher.shape != logits.shape:
        return found
    if label is not None:
        found["teacher_accuracy"] = from_values(jnp.equal(jnp.argmax(teacher, axis=-1), label), where)
    if student is not None:
        same = jnp.equal(jnp.argmax(student, axis=-1), jnp.argmax(teacher, axis=-1))
        found["agreement"] = from_values(same, where)
    return found


def is_class(label: Array, logits: Array) -> bool:
    """Returns whether labels are class numbers for these logits.

    They may also be boxes, soft labels or labels of another task.
    """
    return jnp.issubdtype(label.dtype, jnp.integer) and label.shape == logits.shape[:-1]


def included(context: Context, label: Array, classes: int) -> Array:
    """Returns the batch's mask without labels outside of ``[0, classes)``."""
    wide = jnp.asarray(label).astype(jnp.promote_types(label.dtype, jnp.int32))  # an int8 is never below 1000
    valid = (wide >= 0) & (wide < classes)
    mask = batches.mask_of_shape(context, label.shape)
    return valid if mask is None else valid & mask


def per_teacher(context: Context) -> Metrics:
    """Metrics of `classification`, and teacher metrics of each member of an ensemble.

    Args:
      context: context with the outputs ``teacher/NAME/logits`` of `jaxkd.teachers.ensemble`.

    Returns:
      Beside the metrics of `classification`: ``teacher_accuracy/NAME``, ``teacher_nll/NAME`` and ``agreement/NAME``,
      the agreement of the student with this member. For a member that covers a part of the classes, with logits of −∞
      for the others (as from `jaxkd.wrappers.expand_classes`), only examples of its own classes are included.

    >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> members = {"a/logits": logits, "b/logits": -logits, "logits": 0 * logits}
    >>> context = Context({"logits": logits}, members, {"label": jnp.array([0, 1])}, step=0)
    >>> from jaxkd.metrics import compute
    >>> found = compute(per_teacher(context))
    >>> [found[f"{name}/{member}"] for member in "ab" for name in ("teacher_accuracy", "agreement")]
    [1.0, 1.0, 0.0, 0.0]
    """
    found = dict(classification(context))
    for path, logits in context.teacher.items():
        name, slash, output = path.rpartition("/")
        if not slash or output != "logits" or logits.shape != context.student.get("logits", logits).shape:
            continue  # another output, or a member of other classes
        own = context._replace(batch=_mask_unknown_classes(context.batch, logits))
        alone = classification(own._replace(student={"logits": logits}, teacher={}))
        found |= {f"teacher_{metric}/{name}": alone[metric] for metric in ("accuracy", "nll") if metric in alone}
        both = classification(own._replace(teacher={"logits": logits}))
        found |= {f"agreement/{name}": both["agreement"]} if "agreement" in both else {}
    return found


def per_student(context: Context) -> Metrics:
    """Metrics of `classification`, for the student and for each of its parts.

    Parts are the models of `jaxkd.wrappers.joint` and `jaxkd.wrappers.replicate`, exits and views.

    Args:
      context: context with the parts' outputs ``student/NAME/logits``.

    Returns:
      Beside the metrics of `classification` for the student's own logits: ``accuracy/NAME`` and ``nll/NAME``, if there
      are integer labels.

    >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> members = {"a/logits": logits, "b/logits": -logits, "logits": logits}
    >>> from jaxkd.metrics import compute
    >>> found = compute(per_student(Context(members, {}, {"label": jnp.array([0, 1])}, step=0)))
    >>> [found[name] for name in ("accuracy", "accuracy/a", "accuracy/b")]
    [1.0, 1.0, 0.0]
    """
    found = dict(classification(context))
    for path, logits in context.student.items():
        name, slash, output = path.rpartition("/")
        if slash and output == "logits":
            alone = classification(context._replace(student={"logits": logits}, teacher={}))
            found |= {f"{metric}/{name}": mean for metric, mean in alone.items()}
    return found


def _mask_unknown_classes(batch: Batch, logits: Array) -> Batch:
    """Masks the examples whose label has a logit of −∞."""
    label = batch.get("label")
    if label is None or not is_class(label, logits) or label.ndim != 1:
        return batch
    inside = jnp.clip(label, 0, logits.shape[-1] - 1)
    known = jnp.take_along_axis(logits, inside[:, None], axis=-1)[:, 0] > -jnp.inf
    mask = batches.example_mask(batch)
    return {**batch, "mask": known if mask is None else known & mask}
