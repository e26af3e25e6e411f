"""Placement of arrays on meshes that may span several hosts."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd._core.arrays import shardings
from jaxkd.types import Array, PyTree, TrainState

# By input: its arrays, and their replicas on the last mesh.
_REPLICATED: weakref.WeakKeyDictionary[Any, tuple[PyTree, PyTree]] = weakref.WeakKeyDictionary()


def globally(x: Any, sharding: Any) -> Array:
    """Returns an array with a sharding; each host sends the parts of its own devices.

    The array is equal on every host or global, and may be a typed PRNG key. With this sharding, it is returned itself.

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


def entered(mesh: Mesh) -> AbstractContextManager[Any]:
    """Returns a context for programs of a mesh, if the user has set another one."""
    current = jax.sharding.get_abstract_mesh()
    return nullcontext() if current.empty or current == mesh.abstract_mesh else jax.set_mesh(mesh)


def replicated_arrays(state: TrainState, data: Any) -> PyTree:
    """Returns a resident input's ``arrays``, replicated once over a state's mesh.

    If the state is not on a mesh, they are returned unmodified, or moved to its device.
    """
    sharding = jax.tree.leaves(state)[0].sharding
    if isinstance(sharding, NamedSharding):
        whole: Any = NamedSharding(shardings.automatic_mesh(cast(Mesh, sharding.mesh)), PartitionSpec())
    elif all(not getattr(x, "committed", False) or x.sharding == sharding for x in jax.tree.leaves(data.arrays)):
        return data.arrays
    else:
        whole = sharding
    original, replicated = _REPLICATED.get(data, (None, None))
    if original is not data.arrays or jax.tree.leaves(replicated)[0].sharding != whole:
        replicated = jax.tree.map(lambda x: globally(x, whole), data.arrays)
        _REPLICATED[data] = data.arrays, replicated
    return replicated


def check_spans_hosts(state: TrainState) -> None:
    """Raises if there are several hosts and the state is on this one only.

    Raises:
      ValueError: each host would train a separate network.
    """
    if jax.process_count() > 1 and jax.tree.leaves(state)[0].is_fully_addressable:
        raise ValueError(
            f"state: expected an array over the devices of all {jax.process_count()} hosts, got one on this host's "
            "devices only: each host would train a separate network. Place the distiller on all devices: "
            "parallel.shard(kd, jax.make_mesh((jax.device_count(),), ('data',)))."
        )
