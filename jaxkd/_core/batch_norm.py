"""Batch statistics of BatchNorm under padding masks, on any number of devices.

The literature's networks were trained with BatchNorms that see one device's share of the batch. Such a share is
called a *replica* here, and the number of replicas is a setting, `replicas`: by default one per device of the mapped
axis, which reproduces published numbers; 1 for the statistics of the whole batch; or k, for equal results on any
number of devices.

How it works. An adapter asks `of_layer` for each BatchNorm call in training. The answer is None where Flax computes
the right statistics by itself: no mask, and one replica per device. Otherwise the adapter computes the masked mean
and variance of each replica with `statistics`, lets the layer normalize by them in inference mode with `by_replica`
(so that dtype, scale, bias and subclasses remain Flax's), and moves the averages with `running`. A replica is either
a contiguous part of this device's examples (``groups`` > 1, a reshape) or a run of consecutive devices
(``devices`` > 1, a sum over the mapped axis).

The layers of objectives use the same functions.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.types import Array

_REPLICAS: contextvars.ContextVar[int | None] = contextvars.ContextVar("jaxkd_replicas", default=None)
_PACE: contextvars.ContextVar[Array | None] = contextvars.ContextVar("jaxkd_pace", default=None)


@contextlib.contextmanager
def replicas(count: int | None) -> Iterator[None]:
    """Sets the number of batch parts that BatchNorm normalizes separately.

    The parts of the global batch are contiguous and equal. Their number belongs to the traced program and not to the
    devices: ``replicas(8)`` gives the results of eight devices on one, and ``replicas(1)`` those of one device on
    eight. The running statistics are the mean over the replicas. A layer with an axis of its own (Flax's ``axis_name``)
    requests the statistics of the whole batch, and gets them for any number of replicas.

    The value is read while a step is traced, and `jax.jit` does not include it in its cache key: enter the context
    *inside* the function that is compiled, or a program traced earlier is reused. ``jaxkd.parallel`` does so with its
    ``replicas=``.

    Args:
      count: the number of replicas; None for one per device of the mapped axis, or 1 without a mapped axis.

    Raises:
      ValueError: the count is not positive. A BatchNorm raises it if neither the number of replicas nor that of devices
        is a multiple of the other, or if the batch does not divide.

    >>> from jaxkd.objectives import layers
    >>> def normalized(x):
    ...     with replicas(2):
    ...         made = layers.batch_norm_init(1)
    ...         return layers.batch_norm(*made, x, mask=None, axis_name=None, train=True)[0]
    >>> normalized(jnp.array([[0.0], [2.0], [0.0], [200.0]]))[:, 0].round(3)
    Array([-1.,  1., -1.,  1.], dtype=float32)
    """
    if count is not None and count < 1:
        raise ValueError(f"replicas: expected a positive number, or None for one per device; got {count}.")
    token = _REPLICAS.set(count)
    try:
        yield
    finally:
        _REPLICAS.reset(token)


@contextlib.contextmanager
def pace(factors: Array | None) -> Iterator[None]:
    """Scales the moves of running statistics, by a factor for each replica.

    The factors are ``[groups]``. Micro-batches use it: the moves of each replica are then averaged over those
    micro-batches that hold an unmasked example of this replica, although the states are averaged over the micro-batches
    of all of them. Where one context contains another, the factors are multiplied.

    >>> with pace(jnp.array([2.0])), pace(jnp.array([3.0])):
    ...     print(share_of(None, None).pace)
    [6.]
    """
    outer = _PACE.get()
    token = _PACE.set(factors if outer is None else outer if factors is None else outer * factors)
    try:
        yield
    finally:
        _PACE.reset(token)


class Share(NamedTuple):
    """Examples and devices that share the statistics of a BatchNorm.

    Attributes:
      mask: True for the examples to include ``[batch]``; None for all.
      axis_name: the mapped axis that splits the batch, or None.
      groups: number of replicas into which this device's examples divide.
      devices: number of consecutive devices of the axis that one replica spans.
      size: number of examples on this device, or None for the first dimension of the layer's input.
      pace: factors ``[groups]`` of the moves of the running statistics, or None for 1; see `pace`.
    """

    mask: Array | None
    axis_name: str | None
    groups: int = 1
    devices: int = 1
    size: int | None = None
    pace: Array | None = None

    @property
    def whole(self) -> bool:
        """True without a mask and with one replica per device: Flax's own rule."""
        return self.mask is None and self.groups == self.devices == 1


def share_of(mask: Array | None, axis_name: str | None, size: int | None = None, count: int | None = None) -> Share:
    """Builds the `Share` of the code being traced.

    ``count`` is the number of replicas, by default that of `replicas`. Give ``size``, the number of examples on this
    device, where a layer may see another number of rows.

    Raises:
      ValueError: neither of the numbers of replicas and devices is a multiple of the other.

    >>> share_of(None, None, 8, count=4)
    Share(mask=None, axis_name=None, groups=4, devices=1, size=8, pace=None)
    """
    present = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    count = count or _REPLICAS.get() or present
    if count % present and present % count:
        raise ValueError(
            f"BatchNorm: {count} replicas do not fit {present} devices: expected a multiple or a divisor of {present}. "
            "Set replicas= of jaxkd.parallel (1 for the statistics of the whole batch, None for one per device)."
        )
    groups, factors = max(count // present, 1), _PACE.get()
    own = factors if factors is not None and factors.shape == (groups,) else None
    return Share(mask, axis_name, groups, max(present // count, 1), size, own)


def of_layer(share: Share, layer: Any) -> Share | None:
    """Returns the share of a Flax BatchNorm layer, or None if Flax computes it.

    A layer with an ``axis_name`` requests the statistics of the whole batch, so that its share has one replica. A layer
    with ``axis_index_groups`` chooses its groups of devices itself.

    >>> import flax.linen as nn
    >>> share = share_of(None, None, count=4)
    >>> of_layer(share, nn.BatchNorm()).groups, of_layer(share, nn.BatchNorm(axis_name="devices")).groups
    (4, 1)
    """
    if layer.axis_index_groups is not None or (layer.axis_name is None and share.whole):
        return None
    return share if layer.axis_name is None else share_of(share.mask, share.axis_name, share.size, count=1)


def statistics(
    x: Array, axis: Any, share: Share, *, fast: bool, mask: Array | None = None
) -> tuple[Array, Array, Array]:
    """Computes masked means and variances of each replica, with Flax's formulas.

    Args:
      x: the input ``[batch, ...]`` of a BatchNorm.
      axis: its feature axis or axes.
      share: the examples to include and the replicas they belong to.
      fast: ``E[x²] − E[x]²`` instead of ``E[(x − E[x])²]``.
      mask: the layer's own mask, broadcastable to ``x``; a value is included if both masks include it.

    Returns:
      Means and variances ``[groups, features]`` of this device's replicas, and the numbers of values that they average,
      which broadcast to them.

    Raises:
      ValueError: the first axis does not hold the batch's examples, so the mask and the replicas cannot be applied; or
        the batch does not divide into the replicas.
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
    features = {a + 1 for a in features}  # after the new leading axis of replicas
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
        return over_devices(jnp.sum(value if where is None else jnp.where(where, value, 0), axis=axes), share)

    count = over_devices(count, share)
    safe = jnp.maximum(count, 1)  # a replica whose examples are all masked has mean 0 and variance 0
    mean = total(x) / safe
    if fast:
        return mean, jnp.maximum(total(x * x) / safe - mean**2, 0), count
    return mean, total((x - jnp.expand_dims(mean, axes)) ** 2) / safe, count


def by_replica(normalize: Callable[[Array, Array, Array], Array], x: Array, mean: Array, var: Array) -> Array:
    """Applies ``normalize(x, mean, var)`` to each replica with its own `statistics`.

    >>> by_replica(lambda x, mean, var: x - mean, jnp.arange(4.0), jnp.array([0.0, 2.0]), jnp.ones(2))
    Array([0., 1., 0., 1.], dtype=float32)
    """
    groups = mean.shape[0]
    if groups == 1:
        return normalize(x, mean[0], var[0])
    return jax.vmap(normalize)(_divide(x, groups), mean, var).reshape(x.shape)


def running(old: Array, new: Array, momentum: float, count: Array, factors: Array | None = None) -> Array:
    """Updates a running statistic ``[features]`` with the mean over the replicas.

    ``new`` ``[groups, features]`` and ``count`` are those of `statistics`; ``momentum`` weights ``old``, and
    ``factors`` are the share's `pace`. A replica without examples keeps the old value.

    >>> running(jnp.zeros(1), jnp.array([[2.0], [8.0]]), 0.5, jnp.array([[3.0], [0.0]]))
    Array([0.5], dtype=float32)
    """
    moved = jnp.where(count > 0, momentum * old[None] + (1 - momentum) * new, old[None])
    if factors is not None:
        moved = old[None] + factors.reshape(-1, *(1 for _ in old.shape)) * (moved - old[None])
    return jnp.mean(moved, axis=0).astype(old.dtype)


def _divide(x: Array, groups: int) -> Array:
    """Reshapes ``[batch, ...]`` to ``[groups, batch / groups, ...]``, contiguously."""
    rows = x.shape[0]
    if rows % groups:
        raise ValueError(
            f"BatchNorm: {rows} examples do not divide into {groups} replicas. Pad the batch under a mask, as "
            f"jaxkd.parallel.pad(batch, {groups}) does, or use replicas=1."
        )
    return x.reshape(groups, rows // groups, *x.shape[1:])


def over_devices(value: Array, share: Share) -> Array:
    """Sums over the devices that share this device's replica."""
    if share.axis_name is None or share.devices == 1:
        return value
    present = jax.lax.axis_size(share.axis_name)
    if share.devices == present:
        return jax.lax.psum(value, share.axis_name)
    # shard_map does not support `axis_index_groups`, so all devices gather and each picks its replica's sum.
    parts = jax.lax.all_gather(value, share.axis_name)
    replica = jax.lax.axis_index(share.axis_name) // share.devices
    sums = jnp.sum(parts.reshape(-1, share.devices, *value.shape), axis=1)
    return jax.lax.dynamic_index_in_dim(sums, replica, keepdims=False)
