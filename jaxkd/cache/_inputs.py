"""Checksums of what a teacher saw, compared with what the student sees.

The entries that the teacher reads are reduced to one number each, per example and view, when the cache is written. The
step reduces its own batch in the same way. Floating-point entries are compared within rounding, as another device or
another fusion of operations rounds differently; integers and booleans have to be equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.cache._examples import is_place
from jaxkd.cache._manifest import StaleCacheError
from jaxkd.types import Array, Batch


def entries_read(function: Callable[[Batch], Any], batch: Mapping[str, Any]) -> list[str]:
    """Returns the entries of a batch that the results of a function depend on.

    An entry that only may be read is included. The place of an example in the set or the pass is not an input; a mask
    over tokens is.

    >>> entries_read(lambda batch: batch["image"] * 2, {"image": jnp.ones(3), "label": jnp.ones(3)})
    ['image']
    """
    rest = {name: value for name, value in batch.items() if is_place(name, value)}
    given = {name: value for name, value in batch.items() if name not in rest}
    jaxpr = jax.make_jaxpr(lambda given: function({**rest, **given}))(given).jaxpr
    counts = [len(jax.tree.leaves(given[name])) for name in sorted(given)]
    owners = [name for name, count in zip(sorted(given), counts, strict=True) for _ in range(count)]
    # Variables of the function itself, such as weights that are being traced, come as constants.
    return sorted({name for name, used in zip(owners, _used(jaxpr), strict=True) if used})


def _used(jaxpr: Any) -> list[bool]:
    """Returns which arguments of a traced function any of its operations reads."""
    used = {id(variable) for variable in jaxpr.outvars}
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr")
        reads = [True] * len(equation.invars)
        if inner is not None and equation.primitive.name in ("jit", "pjit"):  # a jitted model is given a whole batch
            reads = _used(inner.jaxpr)
        used |= {id(variable) for variable, read in zip(equation.invars, reads, strict=True) if read}
    return [id(variable) in used for variable in jaxpr.invars]


def checksums(batch: Mapping[str, Any], names: Sequence[str]) -> Array:
    """Returns a number for each example and named entry, float32 ``[batch, names]``.

    That of a floating-point entry is a weighted sum of its values. That of other entries is a sum modulo 2²⁴.

    >>> checksums({"token": jnp.array([[3, 4], [4, 3]]), "index": jnp.arange(2)}, ["token"]).shape
    (2, 1)
    """
    columns = [_checksum(_numbers(batch[name])) for name in names]
    return jnp.stack(columns, axis=-1) if columns else jnp.zeros((len(batch["index"]), 0), jnp.float32)


def unseen(batch: Mapping[str, Any], names: Sequence[str], stored: Array, tolerance: float) -> Array:
    """Returns ``bool[batch]``, True for an example that the teacher saw otherwise.

    ``stored`` has the `checksums` of the examples. ``tolerance`` is the largest difference of a floating-point entry,
    relative to the root of its sum of squares and to its checksum.

    Raises:
      StaleCacheError: the batch lacks an entry that the teacher read.

    >>> image = jnp.arange(8.0).reshape(2, 4)
    >>> known = checksums({"image": image}, ["image"])
    >>> unseen({"image": image.at[1].set(image[1, ::-1])}, ["image"], known, 0.01).tolist()
    [False, True]
    """
    if absent := [name for name in names if name not in batch]:
        raise StaleCacheError(
            f"teachers.cached: expected a batch with {list(names)}, which the teacher read when the cache was written, "
            f"got {sorted(batch)} without {absent}. The transform of the step has to be that of the cache."
        )
    found = jnp.zeros(stored.shape[:1], bool)
    for column, name in enumerate(names):
        x, old = _numbers(batch[name]), stored[:, column]
        new = _checksum(x)
        same = (new == old) | (jnp.isnan(new) & jnp.isnan(old))
        if jnp.issubdtype(x.dtype, jnp.floating):
            size = jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))) + jnp.abs(new)
            same |= jnp.abs(new - old) <= tolerance * size
        found |= ~same
    return found


def _numbers(x: Any) -> Array:
    """Returns float32 or uint32 ``[batch, ...]``."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    return x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.uint32)


def _checksum(x: Array) -> Array:
    # The weight of a value is a product of one number for each of its axes: the constants stay small, and a value
    # costs one multiplication and one addition. A matrix product would be rounded to bfloat16 on some devices.
    exact = x.dtype == jnp.uint32
    for axis in range(x.ndim - 1, 0, -1):
        weights = _weights(x.shape[axis], axis, exact).reshape((1,) * axis + (-1,))
        x = jnp.sum(x * weights, axis=-1, dtype=x.dtype)
    return (x >> np.uint32(8)).astype(jnp.float32) if exact else x


def _weights(length: int, axis: int, exact: bool) -> np.ndarray:
    """Returns irregular weights, so that the order of the values changes a sum."""
    place = np.arange(1, length + 1, dtype=np.float64)
    irregular = np.cos(place**2 * (1 + math.sqrt(5)) / 2 + axis)
    if exact:
        return (np.round((irregular + 1) * 2**30).astype(np.uint32) << np.uint32(1)) | np.uint32(1)
    # Their mean is 1 on every axis, so that a change of brightness shows.
    spread = irregular.std() if length > 1 else 1.0
    return (1 + 0.75 * (irregular - irregular.mean()) / spread).astype(np.float32)
