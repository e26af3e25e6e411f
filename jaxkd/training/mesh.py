"""Arrays on the devices of a mesh, of which not all need be this host's."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd.types import Array, Batch, Distiller, PyTree, TrainState

__all__ = ["arrays_beside", "check_alone", "globally", "intake_of"]

_SENT: weakref.WeakKeyDictionary[Any, tuple[PyTree, PyTree]] = weakref.WeakKeyDictionary()


def globally(x: Any, sharding: Any) -> Array:
    """An array with a sharding; each host sends what its own devices hold.

    Args:
      x: an array of this host, the same on every host; or a global one. It may be a typed PRNG key.
      sharding: over any devices.

    Returns:
      The same array if it lies so already.

    >>> whole = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec())
    >>> globally(np.ones(3), whole).sharding == whole
    True
    """
    if getattr(x, "sharding", None) == sharding:
        placed: Array = x
        return placed
    if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    if jnp.issubdtype(getattr(x, "dtype", np.dtype(bool)), jax.dtypes.prng_key):
        data, implementation = globally(jax.random.key_data(x), sharding), jax.random.key_impl(x)
        return jax.jit(lambda data: jax.random.wrap_key_data(data, impl=implementation), out_shardings=sharding)(data)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def arrays_beside(state: TrainState, data: Any) -> PyTree:
    """The arrays of a resident input on every device of a state's mesh, sent there once.

    Args:
      state: whose devices count; if it lies on one, the arrays stay where they are.
      data: the input.

    Returns:
      Its ``arrays``, replicated.
    """
    sharding = jax.tree.leaves(state)[0].sharding
    if not isinstance(sharding, NamedSharding):
        return data.arrays
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    of, sent = _SENT.get(data, (None, None))
    if of is not data.arrays or jax.tree.leaves(sent)[0].sharding != whole:
        sent = jax.tree.map(lambda x: globally(x, whole), data.arrays)
        _SENT[data] = data.arrays, sent
    return sent


def intake_of(kd: Distiller) -> Callable[[Batch], Batch]:
    """What puts the batches of one input where a distiller's compiled step wants them.

    Args:
      kd: placed by `jaxkd.parallel`, or not.

    Returns:
      A function of a batch.

    Raises:
      ValueError: from that function: the batch is only this host's part, and nobody knows of what.
    """
    make: Callable[[], Callable[[Batch], Batch]] | None = getattr(kd, "intake", None)
    if make is not None:
        return make()

    def check(batch: Batch) -> Batch:
        if jax.process_count() > 1 and any(getattr(x, "is_fully_addressable", True) for x in batch.values()):
            raise ValueError(
                "several hosts: this distiller was wrapped after it was placed, so the hosts' parts of a batch cannot "
                "be put together. Place it last: parallel.shard(preprocess(kd), mesh)."
            )
        return batch

    return check


def check_alone(state: TrainState) -> None:
    """Refuses a state that lies on this host only, where there are several.

    Raises:
      ValueError: the hosts would each train a network of their own.
    """
    if jax.process_count() > 1 and jax.tree.leaves(state)[0].is_fully_addressable:
        raise ValueError(
            f"{jax.process_count()} hosts, and the state is only on this one's devices: each would train a network of "
            "its own. Place the distiller on all: parallel.shard(kd, jax.make_mesh((jax.device_count(),), ('data',)))."
        )
