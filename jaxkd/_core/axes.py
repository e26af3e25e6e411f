"""Mapped axes: gather, averages over devices, positions and keys of examples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core.batches import example_mask
from jaxkd.types import DATA_AXIS, Array, Context, PyTree


def data_axis() -> str | None:
    """Returns `DATA_AXIS` if the traced code is mapped over it, else None.

    Other axes are ignored. This is for models, which users may call in their own step, under an axis of their own.
    """
    try:
        jax.lax.axis_size(DATA_AXIS)
    except NameError:
        return None
    return DATA_AXIS


def mapped_axis() -> str | None:
    """Returns `DATA_AXIS` if the traced code is mapped over it, else None.

    Raises:
      ValueError: the code is mapped over devices by another axis of `jax.pmap` or `jax.shard_map`. Nothing would be
        averaged over it. Axes of `jax.vmap` are free: their lanes are separate runs, such as seeds. JAX before
        0.8 cannot tell a named axis of `jax.vmap` from one of `jax.pmap`, so that either is refused.

    >>> mapped_axis() is None, jax.vmap(lambda x: x * (mapped_axis() is None), axis_name=DATA_AXIS)(jnp.ones(1))
    (True, Array([0.], dtype=float32))
    """
    if unknown := [name for name in _device_axes() if name != DATA_AXIS]:
        raise ValueError(
            f"step: expected jaxkd.DATA_AXIS as the only axis that is mapped over devices, got {unknown}. Gradients, "
            "metrics and statistics would not be averaged over it, and each device would train a student of its own. "
            "Name the axis: jax.pmap(kd.step, axis_name=jaxkd.DATA_AXIS), or use jaxkd.parallel.pmap(kd) or "
            "jaxkd.parallel.shard(kd, mesh). For independent runs, use jax.vmap or jaxkd.distillers.sweep."
        )
    return data_axis()


def _device_axes() -> list[Any]:
    """Returns the axes of `jax.pmap` and `jax.shard_map` around the caller."""
    # Both make their axes manual axes of the mesh that is traced under, and `jax.vmap` does not.
    axes = list(jax.sharding.get_abstract_mesh().manual_axes)
    if jax.__version_info__ < (0, 8):
        # There `jax.pmap` has no mesh. Its axis is found among all named ones, those of `jax.vmap` included.
        core: Any = jax._src.core
        axes += list(core.get_axis_env().axis_sizes)
    return axes


def positions(mask: Array | None, size: int, axis_name: str | None) -> Array:
    """Returns each example's index among the unmasked examples of the global batch.

    They are int32 ``[size]``, numbered over the devices in their order. Masked examples get an arbitrary non-negative
    index.

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


def average_over_devices(tree: PyTree, axis_name: str, unchanged: PyTree = ()) -> PyTree:
    """Averages a tree over the devices; keeps integers and PRNG keys.

    Integers are counters, equal on all devices, which a mean would turn into floats; they are reduced by their maximum.
    Arrays known to be equal on all devices are not communicated: those of ``unchanged`` that were returned unmodified,
    such as the index tables of a memory bank, and those that a checked `jax.shard_map` has typed as not varying over
    the axis, such as the bank's rows. `jax.pmap` has no such types, so that the bank is averaged there.
    """
    same = {id(x) for x in jax.tree.leaves(unchanged)}
    typed = axis_name in _varies_over(jax.lax.axis_index(axis_name))

    def mean(x: Array) -> Array:
        known = id(x) in same or (typed and axis_name not in _varies_over(x))
        if known or jnp.issubdtype(x.dtype, jax.dtypes.extended):
            return x
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return jax.lax.pmax(x, axis_name)
        return jax.lax.psum(x / jax.lax.axis_size(axis_name), axis_name)  # divided first, so that no sum overflows

    return jax.tree.map(mean, tree)


def _varies_over(x: Array) -> frozenset[str]:
    """Returns the mapped axes over which an array is known to vary."""
    type_: Any = jax.typeof(x)  # before JAX 0.9 the attribute was `vma`
    axes: frozenset[str] = type_.manual_axis_type.varying if hasattr(type_, "manual_axis_type") else type_.vma
    return axes


def mark_varying(tree: PyTree, axis_name: str | None) -> PyTree:
    """Marks replicated parameters as varying over the devices.

    The gradient by them is then this device's share. By unmarked ones, a checked `jax.shard_map` would return the sum
    over all devices already.
    """
    if axis_name is None:
        return tree
    try:
        lax: Any = jax.lax
        if not hasattr(lax, "pcast"):  # JAX before 0.8
            return lax.pvary(tree, axis_name)
        return lax.pcast(tree, axis_name, to="varying")
    except ValueError:  # an axis of `jax.vmap`, whose lanes are separate already
        return tree


def gather(x: Array, axis_name: str | None) -> Array:
    """Gathers the rows of all devices, in the order of the mapped axis.

    Each device adds its rows, at their place, to zeros. Unlike `jax.lax.all_gather`, a sum lets a checked
    `jax.shard_map` infer that all devices hold the same result, as replicated state requires.
    """
    if axis_name is None:
        return x
    size = x.shape[0]
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.int32
    whole = jnp.zeros((jax.lax.axis_size(axis_name) * size, *x.shape[1:]), dtype)
    start = (jax.lax.axis_index(axis_name) * size,) + (0,) * (x.ndim - 1)
    return jax.lax.psum(jax.lax.dynamic_update_slice(whole, x.astype(dtype), start), axis_name).astype(x.dtype)


def example_keys(key: Array, context: Context, size: int) -> Array:
    """Derives a key for each of ``size`` examples from a key shared by all devices.

    >>> keys = example_keys(jax.random.key(0), Context({}, {}, {}, 0), 3)
    >>> jax.vmap(lambda k: jax.random.uniform(k, (2,)))(keys).shape
    (3, 2)
    """
    # Folding in the position among the unmasked examples of all devices makes the keys of a sharded or padded batch
    # those of the whole, unpadded one.
    places = positions(example_mask(context.batch), size, context.axis_name)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(places)
