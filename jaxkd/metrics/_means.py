"""Means that are divided at the end: `from_values`, `merge`, `psum`, `compute`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from jaxkd.metrics._derived import widened
from jaxkd.metrics._packed_metrics import Packed
from jaxkd.types import Context, Derived, Mean, Metrics


def join(*groups: Metrics) -> Metrics:
    """Merges groups of metrics with disjoint names.

    Raises:
      ValueError: two groups have the same name, of which one would be lost.
    """
    reported: dict[str, Mean | Derived] = {}
    for group in groups:
        if twice := sorted(reported.keys() & group.keys()):
            raise ValueError(
                f"metrics: {', '.join(map(repr, twice))} would be reported twice. 'loss' is the weighted total, and "
                "metrics= (by default accuracy, nll, agreement, teacher_accuracy) reserves its names: rename the term."
            )
        reported.update(group)
    return reported


def report(metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]], context: Context) -> Metrics:
    """Returns the metrics of a function of the context, or of several.

    Args:
      metrics: a function, or several that report metrics of different names.
      context: outputs and batch of the step.

    Raises:
      ValueError: two functions report metrics of one name.

    >>> from jaxkd.metrics import classification
    >>> count = lambda context: {"labels": from_values(context.batch["label"] >= 0)}
    >>> logits, label = jnp.array([[2.0, 0.0]]), jnp.array([0])
    >>> sorted(report([classification, count], Context({"logits": logits}, {}, {"label": label}, 0)))
    ['accuracy', 'labels', 'nll']
    """
    functions = (metrics,) if callable(metrics) else tuple(metrics)
    return join(*(function(context) for function in functions))


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

    The result has the names of either part.

    >>> both = merge({"loss": Mean(6.0, 3.0)}, {"loss": Mean(2.0, 1.0), "kd": Mean(5.0, 1.0)})
    >>> compute(both)
    {'loss': 2.0, 'kd': 5.0}
    """
    if not a or not b:
        return a or b
    if isinstance(a, Packed) and isinstance(b, Packed) and a.names == b.names:
        return dataclasses.replace(a, array=a.array + b.array)
    merged = dict(a)
    for name, metric in b.items():
        merged[name] = _added(name, a[name], metric) if name in a else metric
    return merged


def _added(name: str, a: Mean | Derived, b: Mean | Derived) -> Mean | Derived:
    a, b = widened(a, b), widened(b, a)
    if isinstance(a, Derived) and isinstance(b, Derived):
        return Derived(Mean(a.parts.sum + b.parts.sum, a.parts.count + b.parts.count), a.function)
    if isinstance(a, Derived) or isinstance(b, Derived):
        raise ValueError(f"metric {name!r}: expected a mean, or a derived value, in both parts, got one of each.")
    return Mean(a.sum + b.sum, a.count + b.count)


def total(metrics: Metrics) -> Metrics:
    """Sums metrics that `jax.lax.scan` or `jax.pmap` stacked over their first axis.

    Args:
      metrics: metrics whose sums and counts have the shape ``[n, ...]``.

    >>> _, stacked = jax.lax.scan(lambda _, x: (None, {"x": from_values(x)}), None, jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> compute(total(stacked))
    {'x': 2.5}
    """
    return _each(lambda x: jnp.sum(x, axis=0), metrics)


def psum(metrics: Metrics, axis_name: str | None) -> Metrics:
    """Sums metrics over the devices of a mapped axis.

    Args:
      metrics: metrics of this device.
      axis_name: axis of `jax.pmap` or `jax.shard_map`; None returns the metrics unmodified.

    Returns:
      The metrics of the global batch, equal on every device.

    >>> mapped = jax.pmap(lambda x: psum({"x": from_values(x)}, "d"), axis_name="d")
    >>> compute(jax.tree.map(lambda x: x[0], mapped(jnp.array([[1.0, 3.0]]))))
    {'x': 2.0}
    """
    if axis_name is None:
        return metrics
    return _each(lambda x: jax.lax.psum(x, axis_name), metrics)


def _each(function: Callable[[Any], Any], metrics: Metrics) -> Metrics:
    """Maps sums and counts; keeps the order of the names, unlike `jax.tree.map`."""
    if isinstance(metrics, Packed):
        return dataclasses.replace(metrics, array=function(metrics.array))
    return {name: jax.tree.map(function, metric) for name, metric in metrics.items()}


def compute(metrics: Metrics) -> dict[str, float]:
    """Divides sums by counts, on the host; it waits for the device, so merge first.

    Returns:
      Floats by name; NaN where the count is 0. Values of `derived` are computed here.

    Raises:
      ValueError: a sum or a count is not a scalar.

    >>> compute({"loss": Mean(jnp.array(3.0), jnp.array(2.0)), "none": Mean(0.0, 0.0)})
    {'loss': 1.5, 'none': nan}
    """
    if isinstance(metrics, Packed):  # fetched before it is unpacked, as one transfer
        metrics = dataclasses.replace(metrics, array=jax.device_get(metrics.array))
    for name, metric in metrics.items():
        leading = [jnp.shape(x)[:-1] if isinstance(metric, Derived) else jnp.shape(x) for x in jax.tree.leaves(metric)]
        if any(leading):
            raise ValueError(
                f"metric {name!r}: expected a scalar sum and count, got shapes {list(leading[0])} and "
                f"{list(leading[1])}. Sum metrics that a scan or pmap stacked with metrics.total first."
            )
    on_host = jax.device_get(dict(metrics))  # one transfer; its result is sorted by name, unlike `metrics`
    pairs = {name: (float(on_host[name].sum), float(on_host[name].count)) for name in metrics}
    return {name: sum_ / count if count else math.nan for name, (sum_, count) in pairs.items()}
