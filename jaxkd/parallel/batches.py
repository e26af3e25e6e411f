"""How a batch gets to the devices: padded until it divides, and on several hosts put together from their parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd import checks
from jaxkd.types import Batch

__all__ = ["Intake", "common_multiple", "on_mesh", "over_devices", "pad"]

Intake = Callable[[Batch], Batch]
"""Puts the batches of one input on the devices."""


def pad(batch: Batch, multiple: int) -> Batch:
    """A batch whose size is a multiple of a number: copies of its last example, which the ``mask`` leaves out.

    A batch that divides is returned as it is.

    Args:
      batch: a dict of arrays ``[batch, ...]``.
      multiple: such as the number of devices.

    Returns:
      The batch, with a ``mask`` if anything had to be added.

    Raises:
      ValueError: the arrays have no common leading dimension.

    >>> {name: x.tolist() for name, x in pad({"label": np.array([3, 4, 5])}, 2).items()}
    {'label': [3, 4, 5, 5], 'mask': [True, True, True, False]}
    """
    size = checks.batch_size(batch)
    missing = -size % multiple
    if not missing:
        return batch
    return _fill(batch, size, size + missing)


def on_mesh(mesh: Mesh, axis: str, multiple: int) -> Callable[[], Intake]:
    """What makes intakes for a mesh whose batches are split over one axis.

    Args:
      mesh: the devices, perhaps of several hosts.
      axis: of the mesh, over which the batch is split.
      multiple: what the size of a global batch has to be a multiple of.

    Returns:
      A function that makes an `Intake`; one for each input, because the hosts agree on the size of an input's batches.
    """
    split, parts = NamedSharding(mesh, PartitionSpec(axis)), mesh.shape[axis]
    if split.is_fully_addressable:

        def here(batch: Batch) -> Batch:
            return jax.device_put(dict(pad(batch, multiple)), split)

        return lambda: here
    own = _parts_here(mesh, axis)

    def put(batch: Batch, rows: int) -> Batch:
        shape = rows // own * parts
        return {k: jax.make_array_from_process_local_data(split, np.asarray(x), (shape, *x.shape[1:]))
                for k, x in batch.items()}  # fmt: skip

    def agree(rows: int) -> int:
        """The most rows for one part of the batch that any host needs. Every host asks at the same time."""
        asked = jax.make_array_from_process_local_data(split, np.full(own, rows, np.int32), (parts,))
        return int(jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))(asked))

    return lambda: _several_hosts(own, multiple // parts, agree, put)


def over_devices(devices: int, multiple: int) -> Callable[[], Intake]:
    """What makes intakes for `jax.pmap`, which takes a batch as ``[local devices, share, ...]``.

    Args:
      devices: of this host.
      multiple: what the size of this host's part of a batch has to be a multiple of.
    """

    def split(batch: Batch) -> Batch:
        batch = pad(batch, multiple)
        return {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in batch.items()}

    return lambda: split


def _several_hosts(own: int, multiple: int, agree: Callable[[int], int], put: Callable[[Batch, int], Batch]) -> Intake:
    """Each host's part of a batch, filled up to a number of rows that all agree on once.

    All hosts have to run one program, so each fills its part up to the same size and says by a mask what counts. To
    ask at each batch how many rows the others have would make the host wait for the devices at each step.
    """
    agreed = 0

    def intake(batch: Batch) -> Batch:
        nonlocal agreed
        there = [isinstance(x, jax.Array) and not x.is_fully_addressable for x in batch.values()]
        if all(there):
            return batch
        if any(there):
            kinds = {
                k: "global" if where else "this host's" for (k, _), where in zip(batch.items(), there, strict=True)
            }
            raise ValueError(f"batch: expected either this host's rows everywhere or global arrays, got {kinds}.")
        size = checks.batch_size(batch)
        if not agreed:
            each = -(-size // own)
            agreed = agree(each + -each % multiple) * own
        if size > agreed:
            raise ValueError(
                f"batch: this host's part has {size} rows, and the hosts agreed on at most {agreed} at the first batch "
                "of this input, to which all parts are filled up. Give the largest batch first, or make global arrays "
                "with jax.make_array_from_process_local_data, which are taken as they are."
            )
        # A mask even for a full part: another host's may not be, and all run one program.
        return put(_fill(batch, size, agreed), agreed)

    return intake


def _fill(batch: Batch, size: int, full: int) -> Batch:
    """The batch with masked copies of its last example, or zeros if it has none, behind it."""

    def extend(x: Any) -> Any:
        lib = np if isinstance(x, np.ndarray) else jnp
        last = x[-1:] if size else lib.zeros((1, *x.shape[1:]), x.dtype)
        return lib.concatenate([x, lib.repeat(last, full - size, axis=0)]) if full > size else x

    mask = batch.get("mask", np.ones(size, bool))
    return {**{k: extend(x) for k, x in batch.items()}, "mask": extend(mask) & (np.arange(full) < size)}


def _parts_here(mesh: Mesh, axis: str) -> int:
    """Over how many parts of the axis this process's devices lie."""
    along = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0)
    this = jax.process_index()
    return sum(any(device.process_index == this for device in np.ravel(devices)) for devices in along)


def common_multiple(parts: int, replicas: int | None) -> int:
    """What the size of a global batch must be a multiple of, for its parts and for the replicas to be equal.

    >>> common_multiple(4, None), common_multiple(4, 8), common_multiple(4, 1)
    (4, 8, 4)
    """
    return math.lcm(parts, replicas or 1)
