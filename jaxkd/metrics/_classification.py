"""Metrics as sums and counts, merged over steps and devices before dividing.

A mean of means is wrong where batches differ in the number of unmasked examples: masks, a ragged last batch, an uneven
split over devices. `jaxkd.types.Mean` postpones the division. All functions but `compute` can be used under jit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.metrics._packed_metrics import Packed
from jaxkd.types import Batch, Context, Mean, Metrics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Shaped

__all__ = ["Packed", "classification", "compute", "from_values", "merge", "per_student", "per_teacher", "psum", "total"]


def from_values(values: Shaped[Array, "*batch"], where: Bool[Array, "*batch"] | None = None) -> Mean:
    """Returns the mean of one value per example, as a sum and a count.

    Args:
      values: one value per example, of any real dtype; booleans are 0 and 1.
      where: mask, True for values to include. Excluded values have no influence, even if they are NaN.

    Returns:
      Float32 sum and count of the included values.

    Raises:
      ValueError: the shapes of ``values`` and ``where`` differ.

    >>> mean = from_values(jnp.array([1.0, 3.0, jnp.nan]), where=jnp.array([True, True, False]))
    >>> compute({"x": mean})
    {'x': 2.0}
    """
    values = jnp.asarray(values).astype(jnp.float32)
    if where is None:
        return Mean(jnp.sum(values), jnp.asarray(values.size, jnp.float32))
    where = jnp.asarray(where)
    if where.shape != values.shape:
        raise ValueError(
            f"where: expected the shape of the values, {list(values.shape)}, got {list(where.shape)}. "
            "Broadcast it explicitly, so that every value has its own mask entry."
        )
    where = where.astype(bool)
    return Mean(jnp.sum(jnp.where(where, values, 0)), jnp.sum(where, dtype=jnp.float32))


def merge(a: Metrics, b: Metrics) -> Metrics:
    """Merges the metrics of two parts of a set: sums and counts are added.

    Args:
      a: metrics of one part.
      b: metrics of another part, which may have other names.

    Returns:
      The metrics of both parts together, with the names of either.

    >>> both = merge({"loss": Mean(6.0, 3.0)}, {"loss": Mean(2.0, 1.0), "kd": Mean(5.0, 1.0)})
    >>> compute(both)
    {'loss': 2.0, 'kd': 5.0}
    """
    if not a or not b:
        return a or b
    if isinstance(a, Packed) and isinstance(b, Packed) and a.names == b.names:
        return Packed(a.array + b.array, a.names)
    merged = dict(a)
    for name, mean in b.items():
        merged[name] = Mean(a[name].sum + mean.sum, a[name].count + mean.count) if name in a else mean
    return merged


def total(metrics: Metrics) -> Metrics:
    """Sums metrics that `jax.lax.scan` or `jax.pmap` stacked over their first axis.

    Args:
      metrics: metrics whose sums and counts have the shape ``[n, ...]``.

    Returns:
      The metrics of all n parts together.

    >>> _, stacked = jax.lax.scan(lambda _, x: (None, {"x": from_values(x)}), None, jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> compute(total(stacked))
    {'x': 2.5}
    """
    if isinstance(metrics, Packed):
        return Packed(jnp.sum(metrics.array, axis=0), metrics.names)
    return {name: Mean(jnp.sum(mean.sum, axis=0), jnp.sum(mean.count, axis=0)) for name, mean in metrics.items()}


def psum(metrics: Metrics, axis_name: str | None) -> Metrics:
    """Sums metrics over the devices of a mapped axis.

    Args:
      metrics: metrics of this device.
      axis_name: axis of `jax.pmap` or `jax.shard_map`; None returns the metrics unmodified.

    Returns:
      The metrics of the global batch, the same on every device.

    >>> mapped = jax.pmap(lambda x: psum({"x": from_values(x)}, "d"), axis_name="d")
    >>> compute(jax.tree.map(lambda x: x[0], mapped(jnp.array([[1.0, 3.0]]))))
    {'x': 2.0}
    """
    if axis_name is None:
        return metrics
    if isinstance(metrics, Packed):
        return Packed(jax.lax.psum(metrics.array, axis_name), metrics.names)
    return {name: Mean(*jax.lax.psum((mean.sum, mean.count), axis_name)) for name, mean in metrics.items()}


def compute(metrics: Metrics) -> dict[str, float]:
    """Divides sums by counts, on the host.

    It waits for the device, so call it after merging.

    Args:
      metrics: metrics with scalar sums and counts.

    Returns:
      Floats by name; NaN where the count is 0.

    Raises:
      ValueError: a sum or a count is not a scalar.

    >>> compute({"loss": Mean(jnp.array(3.0), jnp.array(2.0)), "none": Mean(0.0, 0.0)})
    {'loss': 1.5, 'none': nan}
    """
    if isinstance(metrics, Packed):  # fetched before it is unpacked, as one transfer
        metrics = Packed(jax.device_get(metrics.array), metrics.names)
    for name, mean in metrics.items():
        if jnp.shape(mean.sum) or jnp.shape(mean.count):
            raise ValueError(
                f"metric {name!r}: expected a scalar sum and count, got shapes {list(jnp.shape(mean.sum))} and "
                f"{list(jnp.shape(mean.count))}. Sum metrics that a scan or pmap stacked with metrics.total first."
            )
    on_host = jax.device_get(dict(metrics))  # one transfer; its result is sorted by name, unlike `metrics`
    pairs = {name: (float(on_host[name].sum), float(on_host[name].count)) for name in metrics}
    return {name: sum_ / count if count else math.nan for name, (sum_, count) in pairs.items()}


def classification(context: Context) -> Metrics:
    """Metrics of a distilled classifier, as far as the context holds their inputs.

    Args:
      context: outputs of both models, and the batch with an optional ``mask``.

    Returns:
      ``accuracy`` and ``nll`` (cross-entropy, in nats) of the student and ``teacher_accuracy``, if there are integer
      labels; ``agreement``, the share of examples with the same prediction of student and teacher, if both have logits
      of the same classes. Metrics that cannot be computed are omitted.

    >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> context = Context({"logits": logits}, {"logits": -logits}, {"label": jnp.array([0, 0])}, step=0)
    >>> found = compute(classification(context))
    >>> found["accuracy"], found["agreement"], found["teacher_accuracy"]
    (0.5, 0.0, 0.5)
    """
    student, teacher = context.student.get("logits"), context.teacher.get("logits")
    label, mask = context.batch.get("label"), context.batch.get("mask")
    found: dict[str, Mean] = {}
    if label is not None and student is not None and _labels(label, student):
        where = _expand(mask, label)
        found["accuracy"] = from_values(_equal(jnp.argmax(student, axis=-1), label), where)
        found["nll"] = from_values(losses.cross_entropy(student, label, where=where), where)
    if label is not None and teacher is not None and _labels(label, teacher):
        found["teacher_accuracy"] = from_values(_equal(jnp.argmax(teacher, axis=-1), label), _expand(mask, label))
    if student is not None and teacher is not None and student.shape == teacher.shape:
        same = _equal(jnp.argmax(student, axis=-1), jnp.argmax(teacher, axis=-1))
        found["agreement"] = from_values(same, _expand(mask, same))
    return found


def per_teacher(context: Context) -> Metrics:
    """Metrics of `classification`, and the same for every member of an ensemble.

    Args:
      context: context with the outputs ``teacher/NAME/logits`` of `jaxkd.teachers.ensemble`.

    Returns:
      Beside the metrics of `classification`: ``teacher_accuracy/NAME``, ``teacher_nll/NAME`` and ``agreement/NAME``,
      the agreement of the student with this member. For a member that covers a part of the classes, with logits of −∞
      for the others (as from `jaxkd.wrappers.expand_classes`), only examples of its own classes are included.

    >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> members = {"a/logits": logits, "b/logits": -logits, "logits": 0 * logits}
    >>> context = Context({"logits": logits}, members, {"label": jnp.array([0, 1])}, step=0)
    >>> found = compute(per_teacher(context))
    >>> [found[f"{name}/{member}"] for member in "ab" for name in ("teacher_accuracy", "agreement")]
    [1.0, 1.0, 0.0, 0.0]
    """
    found = dict(classification(context))
    for path, logits in context.teacher.items():
        name, slash, output = path.rpartition("/")
        if not slash or output != "logits":
            continue
        own = context._replace(batch=_mask_unknown_classes(context.batch, logits))
        alone = classification(own._replace(student={"logits": logits}, teacher={}))
        found |= {f"teacher_{metric}/{name}": alone[metric] for metric in ("accuracy", "nll") if metric in alone}
        both = classification(own._replace(teacher={"logits": logits}))
        found |= {f"agreement/{name}": both["agreement"]} if "agreement" in both else {}
    return found


def per_student(context: Context) -> Metrics:
    """Metrics of `classification`, and the same for every part of the student.

    Parts are members of `jaxkd.wrappers.joint` and `jaxkd.wrappers.replicate`, exits and views: everything with outputs
    ``NAME/logits``.

    Args:
      context: context with the parts' outputs ``student/NAME/logits``.

    Returns:
      Beside the metrics of `classification` for the group's own logits: ``accuracy/NAME`` and ``nll/NAME``, if there
      are integer labels.

    >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> members = {"a/logits": logits, "b/logits": -logits, "logits": logits}
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


def _labels(label: Array, logits: Array) -> bool:
    """Returns whether labels are class numbers for these logits.

    They may also be boxes, soft labels or labels of another task.
    """
    return jnp.issubdtype(label.dtype, jnp.integer) and label.shape == logits.shape[:-1]


def _mask_unknown_classes(batch: Batch, logits: Array) -> Batch:
    """Masks the examples whose label has a logit of −∞."""
    label = batch.get("label")
    if label is None or not _labels(label, logits) or label.ndim != 1:
        return batch
    known = jnp.take_along_axis(logits, jnp.clip(label, 0)[:, None], axis=-1)[:, 0] > -jnp.inf
    mask = batch.get("mask")
    return {**batch, "mask": known if mask is None else known & mask}


def _equal(a: Array, b: Array) -> Array:
    return jnp.equal(a, b)


def _expand(mask: Array | None, values: Array) -> Array | None:
    """Broadcasts a mask over examples to their tokens."""
    if mask is None or mask.shape == values.shape:
        return mask
    return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape)
