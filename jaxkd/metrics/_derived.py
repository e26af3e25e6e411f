"""Values that are computed from means after these are merged: `derived`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd.types import Derived, Mean


def derived(function: Callable[..., Any], *means: Mean) -> Derived:
    """Returns a metric computed from means after they are merged over a whole set.

    Args:
      function: function of the divided means, one argument each, NaN for a mean that includes nothing. It works on
        arrays of any shape, entry by entry.
      *means: undivided means. One whose sum and count are arrays ``[n]`` gives n arguments, such as one per class.

    Returns:
      A metric that `merge`, `total`, `psum`, `compute` and a run's rows treat like any other.

    >>> from jaxkd.metrics import compute, from_values, merge
    >>> parts = [{"perplexity": derived(jnp.exp, from_values(jnp.array(nll)))} for nll in ([0.0, 0.0], [3.0])]
    >>> round(compute(merge(*parts))["perplexity"], 3)  # exp(1), not the mean of exp(0) and exp(3)
    2.718
    """
    sums, counts = (jnp.concatenate([jnp.ravel(x) for x in column]) for column in zip(*means, strict=True))
    return Derived(Mean(sums.astype(jnp.float32), counts.astype(jnp.float32)), _OfDivided(function))


def total_of(*means: Mean) -> Mean | Derived:
    """Returns the sum of means with counts of their own; an empty one adds 0.

    Args:
      *means: undivided scalar means.

    >>> both = total_of(Mean(jnp.float32(6), jnp.float32(3)), Mean(jnp.float32(1), jnp.float32(2)))
    >>> float(both.sum)
    2.5
    """
    if len(means) == 1:
        return means[0]
    return Derived(Mean(*(jnp.stack(column) for column in zip(*means, strict=True))), _sum_of_means)


def widened(a: Mean | Derived, b: Mean | Derived) -> Mean | Derived:
    """Returns the total a with at least as many parts as the total b.

    Any other metric is returned unmodified. Further parts add 0 and have the first one's count, so that a mean over
    steps of which some have fewer terms remains the mean of their totals.

    Args:
      a: a metric.
      b: another metric.

    >>> mean = Mean(jnp.float32(6), jnp.float32(3))
    >>> widened(mean, total_of(mean, mean)).parts
    Mean(sum=Array([6., 0.], dtype=float32), count=Array([3., 3.], dtype=float32))
    """
    if not all(getattr(x, "function", _sum_of_means) is _sum_of_means for x in (a, b)):
        return a
    if not isinstance(b, Derived):
        return a
    sum_, count = a.parts if isinstance(a, Derived) else (x[..., None] for x in map(jnp.asarray, a))
    missing = max(b.parts.sum.shape[-1] - sum_.shape[-1], 0)
    sums = jnp.concatenate([sum_, *(jnp.zeros_like(sum_[..., :1]),) * missing], axis=-1)
    counts = jnp.concatenate([count, *(count[..., :1],) * missing], axis=-1)
    return Derived(Mean(sums, counts), _sum_of_means)


def mean_of_present(*each: Any) -> Any:
    """Returns the mean of the values that are not NaN, as a function for `derived`."""
    return jnp.nanmean(jnp.stack(each), axis=0)


@dataclasses.dataclass(frozen=True)
class _OfDivided:
    """Function of divided means as a function of the undivided ones.

    Two of them are equal if their functions have the same code and the same variables. A lambda in a metrics function
    is a new object in each trace, and branches of one program must agree on the static data of their results.
    """

    function: Callable[..., Any] = dataclasses.field(compare=False)
    identity: Any = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        cells = getattr(self.function, "__closure__", None) or ()
        code = getattr(self.function, "__code__", self.function)
        object.__setattr__(self, "identity", (code, tuple(id(cell.cell_contents) for cell in cells)))

    def __call__(self, parts: Mean) -> Any:
        where = np.where if isinstance(parts.sum, np.ndarray) else jnp.where
        empty = parts.count == 0
        divided = where(empty, np.nan, parts.sum / (parts.count + empty))
        return self.function(*(divided[..., i] for i in range(divided.shape[-1])))


def _sum_of_means(parts: Mean) -> Any:
    return (parts.sum / (parts.count + (parts.count == 0))).sum(axis=-1)
