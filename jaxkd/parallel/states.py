"""How a state gets to the devices of a mesh: made there, or sent there, and no device sees more than its part."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd.training.mesh import globally
from jaxkd.types import Array, PyTree

__all__ = ["make", "put"]


def put(state: PyTree, placed: PyTree) -> PyTree:
    """A state on its devices; what is there already stays as it is.

    Args:
      state: arrays of this host, the same on every host; or global ones.
      placed: a sharding for each.

    Returns:
      The state, so placed.
    """
    shardings = jax.tree.leaves(placed)
    leaves, treedef = jax.tree.flatten(state)
    if all(sharding.is_fully_addressable for sharding in shardings):
        return jax.tree.unflatten(treedef, jax.device_put(leaves, shardings))
    return jax.tree.unflatten(treedef, map(globally, leaves, shardings))


def make(init: Callable[[Array], PyTree], key: Array, place: Callable[[PyTree], PyTree]) -> PyTree:
    """``init(key)``, compiled so that each device computes and keeps its part of the result.

    Arrays that ``init`` has from elsewhere, such as a teacher's trained weights, are arguments of the program and not
    constants in it, and those that it returns as they are are sent to the devices in parts.

    Args:
      init: traceable.
      key: its argument.
      place: from the shapes of the result to a sharding for each array.

    Returns:
      The result.

    >>> whole = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec())
    >>> weights = jax.numpy.ones(3)
    >>> made = make(lambda key: {"w": weights + 0}, jax.random.key(0), lambda shapes: {"w": whole})
    >>> made["w"].sharding == whole, weights.is_deleted()
    (True, False)
    """
    jaxpr, shapes = jax.make_jaxpr(init, return_shape=True)(key)
    placed = place(shapes)
    leaves, treedef = jax.tree.flatten(placed)
    whole = NamedSharding(leaves[0].mesh, PartitionSpec())
    goes = {id(var): sharding for var, sharding in zip(jaxpr.jaxpr.outvars, leaves, strict=True)}
    for eqn in reversed(jaxpr.jaxpr.eqns):  # of an output that is a copy, or a cast, the original
        if eqn.primitive.name in ("copy", "convert_element_type") and id(eqn.outvars[0]) in goes:
            goes[id(eqn.invars[0])] = goes[id(eqn.outvars[0])]
    consts = zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)
    given = [globally(x, goes.get(id(var), whole)) for var, x in consts]

    def run(given: list[Array], key: Array) -> list[Array]:
        return jax.core.eval_jaxpr(jaxpr.jaxpr, given, key)

    return jax.tree.unflatten(treedef, jax.jit(run, out_shardings=leaves)(given, key))
