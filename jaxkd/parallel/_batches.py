"""Placement of batches: padding, and assembly from the parts of several hosts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd._core import batches
from jaxkd._core.arrays import casts, shardings
from jaxkd.types import Batch

Intake = Callable[[Batch], Batch]
"""A function that puts the batches of one input on the devices."""


def pad(batch: Batch, multiple: int) -> Batch:
    """Pads a batch to a multiple, with masked copies of its last example.

    A batch that divides is returned unmodified; others get a ``mask``.

    Args:
      batch: dict of arrays ``[batch, ...]``.
      multiple: divisor of the padded size, such as the number of devices.

    Raises:
      ValueError: the arrays have no common leading dimension.

    >>> {name: x.tolist() for name, x in pad({"label": np.array([3, 4, 5])}, 2).items()}
    {'label': [3, 4, 5, 5], 'mask': [True, True, True, False]}
    """
    size = batches.batch_size(batch)
    missing = -size % multiple
    if not missing:
        return batch
    return _fill(batch, size, size + missing)


def ready(batch: Batch) -> Batch:
    """Returns a batch on automatic axes, in dtypes that JAX has.

    Raises:
      ValueError: an integer on the host is beyond the range of JAX's dtype.

    >>> ready({"x": np.array([1e300])})
    {'x': array([3.4028235e+38], dtype=float32)}
    """

    def entry(name: str, x: Any) -> Any:
        if not (isinstance(x, np.ndarray) and x.dtype.itemsize == 8):
            return x
        try:
            return casts.cast(x)
        except ValueError as error:
            raise ValueError(f"batch[{name!r}]: {error}") from error

    return shardings.automatic({name: entry(name, x) for name, x in batch.items()})


def on_mesh(mesh: Mesh, axis: str, multiple: int) -> Callable[[], Intake]:
    """Returns a builder of intakes for a mesh with batches split over one axis.

    ``multiple`` divides the size of a global batch. Each input needs its own intake, because the hosts agree on a batch
    size for each input.
    """
    split, parts = NamedSharding(mesh, PartitionSpec(axis)), mesh.shape[axis]
    if split.is_fully_addressable:

        def one_host(batch: Batch) -> Batch:
            return jax.device_put(dict(pad(ready(batch), multiple)), split)

        return lambda: one_host
    own = _local_parts(mesh, axis)

    def put(batch: Batch, rows: int) -> Batch:
        shape = rows // own * parts
        return {k: jax.make_array_from_process_local_data(split, np.asarray(x), (shape, *x.shape[1:]))
                for k, x in batch.items()}  # fmt: skip

    def agree(rows: int) -> int:
        """Returns the largest number of rows of a part over all hosts; all call it."""
        needed = jax.make_array_from_process_local_data(split, np.full(own, rows, np.int32), (parts,))
        return int(jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))(needed))

    return lambda: _several_hosts(own, multiple // parts, agree, put)


def over_devices(devices: int, multiple: int, parts: NamedSharding) -> Callable[[], Intake]:
    """Returns a builder of intakes for `jax.pmap`.

    Its batches are ``[local devices, share, ...]``; ``multiple`` divides the size of this host's part of a batch, and
    ``parts`` is the sharding of the first axis.
    """

    def split(batch: Batch) -> Batch:
        batch = pad(ready(batch), multiple)
        return {name: placed(x.reshape(devices, -1, *x.shape[1:])) for name, x in batch.items()}

    def placed(x: Any) -> Any:
        # `jax.pmap` takes host arrays and uncommitted ones; others have to be in place.
        committed = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and x.committed
        return jax.device_put(x, parts) if committed and parts.is_fully_addressable else x

    return lambda: split


def _several_hosts(own: int, multiple: int, agree: Callable[[int], int], put: Callable[[Batch, int], Batch]) -> Intake:
    """Builds an intake that pads each host's part of a batch to an agreed size.

    All hosts have to run one program, so each pads its part to the same size and masks the padding. They agree on the
    size once, for the first batch: agreeing anew for each batch would make the host wait for the devices at each step.
    """
    agreed = 0

    def intake(batch: Batch) -> Batch:
        nonlocal agreed
        are_global = {k: isinstance(x, jax.Array) and not x.is_fully_addressable for k, x in batch.items()}
        if all(are_global.values()):
            return shardings.automatic(dict(batch))
        if any(are_global.values()):
            kinds = {k: "global" if is_global else "this host's" for k, is_global in are_global.items()}
            raise ValueError(f"batch: expected only rows of this host or only global arrays, got {kinds}.")
        batch = ready(batch)
        size = batches.batch_size(batch)
        if not agreed:
            each = -(-size // own)
            agreed = agree(each + -each % multiple) * own
        if size > agreed:
            raise ValueError(
                f"batch: this host's part has {size} rows, and the hosts agreed on at most {agreed} at the first batch "
                "of this input, to which all parts are padded. Give the largest batch first, or make global arrays "
                "with jax.make_array_from_process_local_data, which are used unmodified."
            )
        # A full part has a mask too: another host's part may need one, and all hosts run one program.
        return put(_fill(batch, size, agreed), agreed)

    return intake


def _fill(batch: Batch, size: int, full: int) -> Batch:
    """Appends masked copies of the last example; masked zeros to an empty batch."""

    def extend(x: Any) -> Any:
        lib = np if isinstance(x, np.ndarray) else jnp
        last = x[-1:] if size else lib.zeros((1, *x.shape[1:]), x.dtype)
        return lib.concatenate([x, lib.repeat(last, full - size, axis=0)]) if full > size else x

    return batches.exclude({k: extend(x) for k, x in batch.items()}, np.arange(full) < size)


def _local_parts(mesh: Mesh, axis: str) -> int:
    """Returns the number of parts of the axis that this process's devices hold."""
    along = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0)
    this = jax.process_index()
    return sum(any(device.process_index == this for device in np.ravel(devices)) for devices in along)
