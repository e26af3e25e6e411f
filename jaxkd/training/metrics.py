"""Metrics as sums and counts: added over steps, batches, devices and hosts first, divided once at the end.

A mean of means is wrong as soon as batches differ in how much of them counts: masked examples, a ragged last batch,
an uneven split over devices. `jaxkd.types.Mean` postpones the division. All but `compute` is for use under jit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.training.packed import Packed
from jaxkd.types import Batch, Context, Mean, Metrics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Shaped

__all__ = ["Packed", "classification", "compute", "from_values", "merge", "per_student", "per_teacher", "psum", "total"]


def from_values(values: Shaped[Array, "*batch"], where: Bool[Array, "*batch"] | None = None) -> Mean:
    """The mean of one value per example, not divided yet.

    Args:
      values: one value per example, of any real dtype; booleans count as 0 and 1.
      where: True for the values that count; what the others hold, NaN included, does not matter.

    Returns:
      Their float32 sum and count.

    Raises:
      ValueError: the shapes of the two differ.

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
            "Broadcast it, so that what is counted is what is meant."
        )
    where = where.astype(bool)
    return Mean(jnp.sum(jnp.where(where, values, 0)), jnp.sum(where, dtype=jnp.float32))


def merge(a: Metrics, b: Metrics) -> Metrics:
    """The metrics of two parts as those of the whole: sums and counts are added.

    Args:
      a: metrics of one part.
      b: metrics of another; it may have other names.

    Returns:
      Every name of either.

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
    """Sums over the leading axis of metrics that come stacked, as `jax.lax.scan` and `jax.pmap` return them.

    Args:
      metrics: means whose sums and counts have the shape ``[n, ...]``.

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
    """Adds the metrics of every device on a mapped axis.

    Args:
      metrics: this device's.
      axis_name: of `jax.pmap` or `jax.shard_map`; None returns the metrics as they are.

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
    """Divides. It waits for the device, so it belongs on the host, after the merging.

    Args:
      metrics: scalar means.

    Returns:
      Floats by name; NaN where nothing was counted.

    Raises:
      ValueError: a mean is not a scalar.

    >>> compute({"loss": Mean(jnp.array(3.0), jnp.array(2.0)), "none": Mean(0.0, 0.0)})
    {'loss': 1.5, 'none': nan}
    """
    if isinstance(metrics, Packed):  # one transfer, and only then the names
        metrics = Packed(jax.device_get(metrics.array), metrics.names)
    for name, mean in metrics.items():
        if jnp.shape(mean.sum) or jnp.shape(mean.count):
            raise ValueError(
                f"metric {name!r}: expected a scalar sum and count, got shapes {list(jnp.shape(mean.sum))} and "
                f"{list(jnp.shape(mean.count))}. What a scan or pmap stacked is added by metrics.total first."
            )
    on_host = jax.device_get(dict(metrics))  # one transfer for all; it sorts the names
    pairs = {name: (float(on_host[name].sum), float(on_host[name].count)) for name in metrics}
    return {name: sum_ / count if count else math.nan for name, (sum_, count) in pairs.items()}


def classification(context: Context) -> Metrics:
    """What one wants to know of a distilled classifier, as far as the context allows it.

    Args:
      context: outputs of both models and the batch. ``batch["mask"]``, where there is one, says which examples count.

    Returns:
      ``accuracy`` and ``nll`` (cross-entropy, in nats) of the student and ``teacher_accuracy``, where there are
      integer labels; ``agreement``, how often student and teacher have the same first choice, where both have logits
      of the same classes. What cannot be computed is left out.

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
    """What `classification` reports, and the same of every member of `jaxkd.teachers.ensemble`.

    Args:
      context: with the members' outputs ``teacher/NAME/logits``.

    Returns:
      Beside the metrics of `classification`: ``teacher_accuracy/NAME``, ``teacher_nll/NAME`` and ``agreement/NAME``,
      that of the student with this member. A member that knows some of the classes only, whose other logits are −∞ (as
      of `jaxkd.adapters.place_classes`), is counted on the examples of the classes that it knows.

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
        own = context._replace(batch=_of_known_classes(context.batch, logits))
        alone = classification(own._replace(student={"logits": logits}, teacher={}))
        found |= {f"teacher_{metric}/{name}": alone[metric] for metric in ("accuracy", "nll") if metric in alone}
        both = classification(own._replace(teacher={"logits": logits}))
        found |= {f"agreement/{name}": both["agreement"]} if "agreement" in both else {}
    return found


def per_student(context: Context) -> Metrics:
    """What `classification` reports, and the same of every part of the student.

    The parts are the members of `jaxkd.adapters.group` and `jaxkd.adapters.copies`, exits and views: whatever has
    outputs ``NAME/logits``.

    Args:
      context: with the parts' outputs ``student/NAME/logits``.

    Returns:
      Beside the metrics of `classification`, which are those of the group's own logits: ``accuracy/NAME`` and
      ``nll/NAME``, where there are integer labels.

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
    """Whether these are class numbers of these logits, rather than boxes, soft labels or another task's."""
    return jnp.issubdtype(label.dtype, jnp.integer) and label.shape == logits.shape[:-1]


def _of_known_classes(batch: Batch, logits: Array) -> Batch:
    """The batch with a mask of the examples whose label is not excluded by a logit of −∞."""
    label = batch.get("label")
    if label is None or not _labels(label, logits) or label.ndim != 1:
        return batch
    known = jnp.take_along_axis(logits, jnp.clip(label, 0)[:, None], axis=-1)[:, 0] > -jnp.inf
    mask = batch.get("mask")
    return {**batch, "mask": known if mask is None else known & mask}


def _equal(a: Array, b: Array) -> Array:
    return jnp.equal(a, b)


def _expand(mask: Array | None, values: Array) -> Array | None:
    """A mask over examples as one over their tokens."""
    if mask is None or mask.shape == values.shape:
        return mask
    return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape)
