"""Batch statistics of the whole batch and of nothing else, whatever the padding and however many devices share it.

Flax's BatchNorm, left alone, lets padded examples into its statistics, and on a mapped axis normalises each device's
share by itself. The adapters take over that one computation where a batch is masked or split, so that masking an
example is the same as dropping it and eight devices are the same as one. A whole batch on one device is left to Flax.
The layers that objectives learn normalise by the same statistics, and `positions` tells where in the whole batch an
example stands.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.types import DATA_AXIS, Array


class Share(NamedTuple):
    """Which examples of a batch count, and the mapped axis that splits it; None for all, and for no axis."""

    mask: Array | None
    axis_name: str | None


def mapped_axis() -> str | None:
    """`DATA_AXIS` where the code being traced is mapped over it, else None.

    >>> mapped_axis() is None, jax.vmap(lambda x: x * (mapped_axis() is None), axis_name=DATA_AXIS)(jnp.ones(1))
    (True, Array([0.], dtype=float32))
    """
    try:
        jax.lax.axis_size(DATA_AXIS)
    except NameError:
        return None
    return DATA_AXIS


def share_of(mask: Array | None) -> Share | None:
    """What a BatchNorm has to know, or None where it can be left alone."""
    axis_name = mapped_axis()
    return None if mask is None and axis_name is None else Share(mask, axis_name)


def statistics(
    x: Array, axis: Any, share: Share, *, fast: bool, mask: Array | None = None
) -> tuple[Array, Array, Array]:
    """Mean and variance over what counts, as Flax computes them, and how many values each was taken over.

    Args:
      x: the input ``[batch, ...]`` of a BatchNorm.
      axis: its feature axis or axes.
      share: what counts.
      fast: ``E[x²] − E[x]²`` instead of ``E[(x − E[x])²]``.
      mask: the layer's own, of a shape that broadcasts to ``x``; both have to count a value.

    Raises:
      ValueError: the batch was reshaped on the way, so that the mask no longer says which rows count.
    """
    features = {a % x.ndim for a in (axis if isinstance(axis, tuple | list) else (axis,))}
    axes = tuple(a for a in range(x.ndim) if a not in features)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    rows = x.shape[0]
    keep = jnp.ones(rows, bool) if share.mask is None else share.mask
    if keep.shape[0] != rows:
        raise ValueError(
            f"BatchNorm: the batch has {keep.shape[0]} examples but its input is {list(x.shape)}, so the batch's mask "
            "cannot be applied. Use batches without padding, or keep the examples on the first axis."
        )
    where = jnp.expand_dims(keep, tuple(range(1, x.ndim)))
    if mask is None:
        count = jnp.sum(keep, dtype=x.dtype) * math.prod(n for a, n in enumerate(x.shape) if a and a not in features)
    else:
        where = where & jnp.broadcast_to(mask, x.shape).astype(bool)
        count = jnp.sum(where, axis=axes, dtype=x.dtype)

    def total(value: Array) -> Array:
        value = jnp.sum(jnp.where(where, value, 0), axis=axes)
        return value if share.axis_name is None else jax.lax.psum(value, share.axis_name)

    if share.axis_name is not None:
        count = jax.lax.psum(count, share.axis_name)
    safe = jnp.maximum(count, 1)
    mean = total(x) / safe
    if fast:
        return mean, jnp.maximum(total(x * x) / safe - mean**2, 0), count
    return mean, total((x - jnp.expand_dims(mean, axes)) ** 2) / safe, count


def running(old: Array, new: Array, momentum: float, count: Array) -> Array:
    """The moving average after this batch; unchanged when nothing counted."""
    return jnp.where(count > 0, momentum * old + (1 - momentum) * new, old)


def positions(mask: Array | None, size: int, axis_name: str | None) -> Array:
    """Where each example stands among those of the global batch that count.

    Args:
      mask: True for the examples that count ``[size]``, or None for all.
      size: the number of examples here.
      axis_name: the mapped axis that splits the batch, or None.

    Returns:
      int32 ``[size]``, counted over the devices in their order. What an example that does not count gets has no
      meaning, and is not negative.

    >>> positions(jnp.array([True, False, True]), 3, None)
    Array([0, 0, 1], dtype=int32)
    """
    keep = jnp.ones(size, bool) if mask is None else mask
    here = jnp.maximum(jnp.cumsum(keep, dtype=jnp.int32) - 1, 0)
    if axis_name is None:
        return here
    counts = jax.lax.all_gather(jnp.sum(keep, dtype=jnp.int32), axis_name)
    before = jnp.arange(counts.shape[0]) < jax.lax.axis_index(axis_name)
    return here + jnp.sum(jnp.where(before, counts, 0))
