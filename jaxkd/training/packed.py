"""Metrics as one array: one output of a compiled step in place of two for each metric.

What a compiled function returns costs the host about a microsecond an array, small as it may be, and to fetch one costs
as much as to send off a small step. A step that reports seven means returns fourteen scalars; packed, they are one
array, a `jaxkd.types.Metrics` like any other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.types import Mean, Metrics

__all__ = ["Packed", "pack", "packing"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["names"])
@dataclasses.dataclass(frozen=True, eq=False)
class Packed(Mapping[str, Mean]):
    """Metrics as one array, which knows their names even when it comes out of a compiled function.

    A mapping of names to `Mean`, unpacked when it is asked.

    Attributes:
      array: ``[..., 2, names]``, sums and counts.
      names: of the metrics.

    >>> metrics = Packed(jnp.array([[1.0, 3.0], [1.0, 2.0]]), ("kd", "loss"))
    >>> metrics["loss"].sum, list(metrics)
    (Array(3., dtype=float32), ['kd', 'loss'])
    """

    array: Any
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Mean:
        """The metric of a name."""
        if name not in self.names:
            raise KeyError(name)
        index = self.names.index(name)
        return Mean(self.array[..., 0, index], self.array[..., 1, index])

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.names)


def pack(metrics: Metrics) -> Packed:
    """Packs metrics; what is packed stays as it is.

    Args:
      metrics: scalar means. One of shape ``[n]``, as a distiller under `jax.vmap` gives, becomes n scalars:
        ``loss[0]``, ``loss[1]``, ...

    Returns:
      Float32 sums and counts.

    Raises:
      ValueError: the sum and the count of a metric differ in shape.

    >>> pack({"loss": Mean(3.0, 2.0), "kd": Mean(1.0, 1.0)})
    Packed(array=Array([[1., 3.], [1., 2.]], dtype=float32), names=('kd', 'loss'))
    """
    if isinstance(metrics, Packed) and np.ndim(metrics.array) == 2:
        return metrics
    names: list[str] = []
    sums, counts = [], []
    for name in sorted(metrics):  # jit returns dicts sorted; so is everything else, to be the same everywhere
        sum_, count = (jnp.asarray(part, jnp.float32) for part in metrics[name])
        if sum_.shape != count.shape:
            raise ValueError(f"metric {name!r}: expected equal shapes, got sum {sum_.shape} and count {count.shape}.")
        names += [name + "".join(f"[{i}]" for i in index) for index in np.ndindex(sum_.shape)]
        sums.append(sum_.reshape(-1))
        counts.append(count.reshape(-1))
    if not names:
        return Packed(jnp.zeros((2, 0)), ())
    return Packed(jnp.stack([jnp.concatenate(sums), jnp.concatenate(counts)]), tuple(names))


def packing(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step, or an evaluation, whose metrics come packed; to be compiled.

    Args:
      step: a function that returns metrics, or a tuple of anything and metrics.

    Returns:
      The same function, with the metrics packed where that changes nothing: where all are float32 scalars.

    >>> step = jax.jit(packing(lambda state, batch: (state + 1, {"loss": Mean(jnp.sum(batch), jnp.float32(2.0))})))
    >>> state, metrics = step(0, jnp.array([1.0, 2.0]))
    >>> len(jax.tree.leaves(metrics)), metrics["loss"].sum
    (1, Array(3., dtype=float32))
    """

    @functools.wraps(step)
    def packed(*arguments: Any, **options: Any) -> Any:
        found = step(*arguments, **options)
        if isinstance(found, tuple):
            return (*found[:-1], _if_plain(found[-1]))
        return _if_plain(found)

    return packed


def _if_plain(metrics: Metrics) -> Metrics:
    if isinstance(metrics, Packed) or not metrics:
        return metrics
    parts = [jnp.asarray(part) for mean in metrics.values() for part in mean]
    plain = all(part.shape == () and part.dtype == jnp.float32 for part in parts)
    return pack(metrics) if plain else metrics
