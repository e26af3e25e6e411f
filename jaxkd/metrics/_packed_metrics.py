"""Metrics packed into one array, in place of two arrays for each metric.

Each array that a compiled function returns costs the host about a microsecond, however small it is, and fetching one
costs as much as dispatching a small step. A step with seven metrics returns fourteen scalars, a sum and a count each.
`Packed` holds them as one array ``[..., 2, names]`` and unpacks an entry when it is read. The names are static data of
the pytree, not arrays, so they pass through `jax.jit` and `jax.lax.scan` without a cost, and stacking over steps or
members adds leading axes to the one array. It is a mapping of names to `Mean`, like any other `jaxkd.types.Metrics`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.types import Derived, Mean, Metrics


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["names", "functions"])
@dataclasses.dataclass(frozen=True, eq=False)
class Packed(Mapping[str, Mean | Derived]):
    """Mapping of names to metrics, stored as one array and unpacked on access.

    Attributes:
      array: sums and counts, ``[..., 2, columns]``.
      names: name of the metric of each column. The parts of a derived value have its name, one column each.
      functions: names of the derived values, each with its function.

    >>> metrics = Packed(jnp.array([[1.0, 3.0], [1.0, 2.0]]), ("kd", "loss"))
    >>> metrics["loss"].sum, list(metrics)
    (Array(3., dtype=float32), ['kd', 'loss'])
    """

    array: Any
    names: tuple[str, ...]
    functions: tuple[tuple[str, Callable[[Mean], Any]], ...] = ()

    def __getitem__(self, name: str) -> Mean | Derived:
        """Returns the metric with a name."""
        if name not in self.names:
            raise KeyError(name)
        first = self.names.index(name)
        for derived, function in self.functions:
            if derived == name:
                columns = slice(first, first + self.names.count(name))
                return Derived(Mean(self.array[..., 0, columns], self.array[..., 1, columns]), function)
        return Mean(self.array[..., 0, first], self.array[..., 1, first])

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names."""
        return iter(dict.fromkeys(self.names))

    def __len__(self) -> int:
        """Returns the number of metrics."""
        return len(set(self.names))


def pack(metrics: Metrics) -> Packed:
    """Packs metrics; packed metrics are returned unmodified.

    Args:
      metrics: metrics with scalar sums and counts. A metric of shape ``[n]``, as from a distiller under `jax.vmap`,
        becomes n scalars: ``loss[0]``, ``loss[1]``, ..., or by the labels of a sweep, ``loss[temperature=4]``.

    Returns:
      Float32 sums and counts.

    Raises:
      ValueError: the sum and the count of a metric differ in shape.

    >>> pack({"loss": Mean(3.0, 2.0), "kd": Mean(1.0, 1.0)})
    Packed(array=Array([[1., 3.], [1., 2.]], dtype=float32), names=('kd', 'loss'), functions=())
    """
    if isinstance(metrics, Packed) and np.ndim(metrics.array) == 2:
        return metrics
    names: list[str] = []
    functions: list[tuple[str, Callable[[Mean], Any]]] = []
    sums, counts = [], []
    for name in sorted(metrics):  # jit sorts the dicts that it returns, so the order must not depend on it
        metric = metrics[name]
        pair = metric.parts if isinstance(metric, Derived) else metric
        sum_, count = (jnp.asarray(part, jnp.float32) for part in pair)
        if sum_.shape != count.shape:
            raise ValueError(f"metric {name!r}: expected equal shapes, got sum {sum_.shape} and count {count.shape}.")
        columns = sum_.shape[-1] if isinstance(metric, Derived) else 1
        each = sum_.shape[:-1] if isinstance(metric, Derived) else sum_.shape
        labels = getattr(metric, "labels", ())
        for index in np.ndindex(each):
            own = name + "".join(f"[{labels[i] if labels and axis == 0 else i}]" for axis, i in enumerate(index))
            names += [own] * columns
            functions += [(own, metric.function)] if isinstance(metric, Derived) else []
        sums.append(sum_.reshape(-1))
        counts.append(count.reshape(-1))
    if not names:
        return Packed(jnp.zeros((2, 0)), ())
    return Packed(jnp.stack([jnp.concatenate(sums), jnp.concatenate(counts)]), tuple(names), tuple(functions))


def packing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a step or an evaluation such that, compiled, it returns packed metrics.

    Args:
      function: function that returns metrics, or a tuple whose last item is metrics.

    Returns:
      The function with packed metrics if all of them are float32 scalars, which packing preserves exactly.

    >>> step = jax.jit(packing(lambda state, batch: (state + 1, {"loss": Mean(jnp.sum(batch), jnp.float32(2.0))})))
    >>> state, metrics = step(0, jnp.array([1.0, 2.0]))
    >>> len(jax.tree.leaves(metrics)), metrics["loss"].sum
    (1, Array(3., dtype=float32))
    """

    @functools.wraps(function)
    def packed(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        if isinstance(result, tuple):
            return (*result[:-1], _pack_if_exact(result[-1]))
        return _pack_if_exact(result)

    return packed


def _pack_if_exact(metrics: Metrics) -> Metrics:
    if isinstance(metrics, Packed) or not metrics:
        return metrics
    parts = [jnp.asarray(part) for part in jax.tree.leaves(dict(metrics))]
    exact = all(part.dtype == jnp.float32 for part in parts)
    ranks = [
        jnp.ndim(metric.parts.sum) - 1 if isinstance(metric, Derived) else jnp.ndim(metric.sum)
        for metric in metrics.values()
    ]
    return pack(metrics) if exact and not any(ranks) else metrics
