"""Batch statistics: whose examples a BatchNorm normalises by, whatever the padding and however many devices there are.

The literature's networks were trained with BatchNorms that see one device's share of the batch. That share is a
*replica* here, and the number of replicas is a setting of its own, `replicas`: by default one for each device of the
mapped axis, so that everybody's numbers are reproduced; 1 for the statistics of the whole batch; or k, for the same
numbers on any number of devices.

The adapters take over that one computation where Flax alone would not do it so: where a batch is padded (a masked
example is then the same as a dropped one), or where replicas and devices are not the same. The layers that objectives
learn normalise by the same statistics, and `positions` tells where in the whole batch an example stands.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.types import DATA_AXIS, Array

_REPLICAS: contextvars.ContextVar[int | None] = contextvars.ContextVar("jaxkd_replicas", default=None)


@contextlib.contextmanager
def replicas(count: int | None) -> Iterator[None]:
    """Into how many parts of the global batch BatchNorm divides it, to normalise each by itself.

    The parts are contiguous and equal. Their number belongs to the traced program and not to the devices:
    ``replicas(8)`` gives the numbers of eight devices on one, and ``replicas(1)`` those of one device on eight. The
    running statistics are the mean over the replicas. A layer that names an axis of its own (Flax's ``axis_name``) asks
    for the statistics of the whole batch, and has them whatever the number.

    It is read while a step is traced, and `jax.jit` does not know of it: enter it *inside* the function that is
    compiled, or a program traced before is used again. ``jaxkd.parallel`` does so with its ``replicas=``.

    Args:
      count: the number of replicas; None for one per device of the mapped axis, and 1 where nothing is mapped.

    Raises:
      ValueError: the count is not positive; and from a BatchNorm: neither of the numbers of replicas and devices is a
        multiple of the other, or the batch does not divide.

    >>> from jaxkd.objectives import layers
    >>> def normalised(x):
    ...     with replicas(2):
    ...         made = layers.batch_norm_init(1)
    ...         return layers.batch_norm(*made, x, mask=None, axis_name=None, train=True)[0]
    >>> normalised(jnp.array([[0.0], [2.0], [0.0], [200.0]]))[:, 0].round(3)
    Array([-1.,  1., -1.,  1.], dtype=float32)
    """
    if count is not None and count < 1:
        raise ValueError(f"replicas: expected a positive number, or None for one per device; got {count}.")
    token = _REPLICAS.set(count)
    try:
        yield
    finally:
        _REPLICAS.reset(token)


class Share(NamedTuple):
    """What a BatchNorm normalises by.

    Attributes:
      mask: which examples of the batch count ``[batch]``; None for all.
      axis_name: the mapped axis that splits the batch, or None.
      groups: into how many replicas the examples that are here divide.
      devices: over how many consecutive devices of the axis one replica reaches.
      size: the number of examples that are here, or None where that is the input's own first dimension.
    """

    mask: Array | None
    axis_name: str | None
    groups: int = 1
    devices: int = 1
    size: int | None = None

    @property
    def whole(self) -> bool:
        """Whether all that is here, and nothing else, is one replica: what Flax does by itself."""
        return self.mask is None and self.groups == self.devices == 1


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


def share_of(mask: Array | None, axis_name: str | None, size: int | None = None, count: int | None = None) -> Share:
    """What a BatchNorm has to know.

    Args:
      mask: True for the examples that count ``[batch]``, or None for all.
      axis_name: the mapped axis that splits the batch, or None.
      size: the number of examples that are here, where a layer could see another number of rows.
      count: of replicas; by default what `replicas` says.

    Raises:
      ValueError: neither of the numbers of replicas and devices is a multiple of the other.

    >>> share_of(None, None, 8, count=4)
    Share(mask=None, axis_name=None, groups=4, devices=1, size=8)
    """
    present = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    count = count or _REPLICAS.get() or present
    if count % present and present % count:
        raise ValueError(
            f"BatchNorm: {count} replicas do not fit {present} devices: expected a multiple or a divisor of {present}. "
            "Set replicas= of jaxkd.parallel (1 for the statistics of the whole batch, None for one per device)."
        )
    return Share(mask, axis_name, max(count // present, 1), max(present // count, 1), size)


def of_layer(share: Share, axis_name: str | None) -> Share:
    """The same for a layer that may name an axis of its own: that asks for the statistics of the whole batch.

    >>> of_layer(share_of(None, None, count=4), None).groups, of_layer(share_of(None, None, count=4), "devices").groups
    (4, 1)
    """
    return share if axis_name is None else share_of(share.mask, share.axis_name, share.size, count=1)


def statistics(
    x: Array, axis: Any, share: Share, *, fast: bool, mask: Array | None = None
) -> tuple[Array, Array, Array]:
    """Mean and variance over what counts, as Flax computes them, and how many values each was taken over.

    Args:
      x: the input ``[batch, ...]`` of a BatchNorm.
      axis: its feature axis or axes.
      share: what counts, and what belongs together.
      fast: ``E[x²] − E[x]²`` instead of ``E[(x − E[x])²]``.
      mask: the layer's own, of a shape that broadcasts to ``x``; both have to count a value.

    Returns:
      Means and variances ``[groups, features]`` of the replicas that are here, and counts that broadcast to them.

    Raises:
      ValueError: the batch was reshaped on the way, so that it is not known which rows count or belong together; or it
        does not divide into the replicas.
    """
    features = {a % x.ndim for a in (axis if isinstance(axis, tuple | list) else (axis,))}
    rows = x.shape[0]
    size = share.size or rows
    if size != rows and (share.mask is not None or share.groups > 1):
        raise ValueError(
            f"BatchNorm: the batch has {size} examples but its input is {list(x.shape)}, so the batch's mask and its "
            "replicas cannot be applied. Keep the examples on the first axis, or use batches without padding and "
            "replicas=1."
        )
    x = _divide(x.astype(jnp.promote_types(x.dtype, jnp.float32)), share.groups)
    features = {a + 1 for a in features}
    axes = tuple(a for a in range(1, x.ndim) if a not in features)
    where = None if share.mask is None else jnp.expand_dims(_divide(share.mask, share.groups), tuple(range(2, x.ndim)))
    if mask is not None:
        own = _divide(jnp.broadcast_to(mask, (rows, *x.shape[2:])).astype(bool), share.groups)
        where = own if where is None else where & own
    everything = math.prod(x.shape[a] for a in axes)
    if where is None:
        count = jnp.full((share.groups, *(1 for _ in features)), everything, x.dtype)
    elif mask is None:
        count = jnp.sum(where, axis=axes, dtype=x.dtype) * (everything // x.shape[1])
    else:
        count = jnp.sum(where, axis=axes, dtype=x.dtype)

    def total(value: Array) -> Array:
        return _over_devices(jnp.sum(value if where is None else jnp.where(where, value, 0), axis=axes), share)

    count = _over_devices(count, share)
    safe = jnp.maximum(count, 1)
    mean = total(x) / safe
    if fast:
        return mean, jnp.maximum(total(x * x) / safe - mean**2, 0), count
    return mean, total((x - jnp.expand_dims(mean, axes)) ** 2) / safe, count


def by_replica(normalise: Callable[[Array, Array, Array], Array], x: Array, mean: Array, var: Array) -> Array:
    """``normalise(x, mean, var)`` for each replica that is here, with its own of the `statistics`.

    >>> by_replica(lambda x, mean, var: x - mean, jnp.arange(4.0), jnp.array([0.0, 2.0]), jnp.ones(2))
    Array([0., 1., 0., 1.], dtype=float32)
    """
    groups = mean.shape[0]
    if groups == 1:
        return normalise(x, mean[0], var[0])
    return jax.vmap(normalise)(_divide(x, groups), mean, var).reshape(x.shape)


def running(old: Array, new: Array, momentum: float, count: Array) -> Array:
    """The moving average after this batch, the mean over the replicas; one in which nothing counts leaves it.

    Args:
      old: before ``[features]``.
      new: of the replicas ``[groups, features]``, from `statistics`.
      momentum: the weight of ``old``.
      count: from `statistics`.

    >>> running(jnp.zeros(1), jnp.array([[2.0], [8.0]]), 0.5, jnp.array([[3.0], [0.0]]))
    Array([0.5], dtype=float32)
    """
    moved = jnp.where(count > 0, momentum * old[None] + (1 - momentum) * new, old[None])
    return jnp.mean(moved, axis=0).astype(old.dtype)


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


def _divide(x: Array, groups: int) -> Array:
    """``[batch, ...]`` as ``[groups, batch / groups, ...]``: contiguous examples are one replica."""
    rows = x.shape[0]
    if rows % groups:
        raise ValueError(
            f"BatchNorm: {rows} examples do not divide into {groups} replicas. Pad the batch under a mask, as "
            f"jaxkd.parallel.pad(batch, {groups}) does, or use replicas=1."
        )
    return x.reshape(groups, rows // groups, *x.shape[1:])


def _over_devices(value: Array, share: Share) -> Array:
    """The sum over the devices that share this one's replica."""
    if share.axis_name is None or share.devices == 1:
        return value
    present = jax.lax.axis_size(share.axis_name)
    if share.devices == present:
        return jax.lax.psum(value, share.axis_name)
    # Not `axis_index_groups`, which shard_map does not take.
    parts = jax.lax.all_gather(value, share.axis_name)
    replica = jax.lax.axis_index(share.axis_name) // share.devices
    sums = jnp.sum(parts.reshape(-1, share.devices, *value.shape), axis=1)
    return jax.lax.dynamic_index_in_dim(sums, replica, keepdims=False)
