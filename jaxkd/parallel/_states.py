"""Placement of states on a mesh, in parts of which each device holds its own.

A state may be larger than one device's memory. `make` therefore compiles ``init`` with the final placement of its
output, and each device computes its part only; `put` sends an existing state, each device its part.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd.parallel._mesh import globally
from jaxkd.types import Array, PyTree


def put(state: PyTree, placed: PyTree) -> PyTree:
    """Puts a state on its devices; arrays in place are returned unmodified.

    The arrays are equal on every host, or global; ``placed`` has a sharding for each.
    """
    wanted = jax.tree.leaves(placed)
    leaves, treedef = jax.tree.flatten(state)
    if all(sharding.is_fully_addressable for sharding in wanted):
        return jax.tree.unflatten(treedef, jax.device_put(leaves, wanted))
    return jax.tree.unflatten(treedef, map(globally, leaves, wanted))


def make(init: Callable[[Array], PyTree], key: Array, place: Callable[[PyTree], PyTree]) -> PyTree:
    """Computes ``init(key)`` such that each device makes its part of the result.

    Arrays that ``init`` closes over, such as a teacher's trained weights, become arguments of the program and not
    constants in it, and those that it returns unmodified are sent to the devices in parts. ``place`` maps the shapes of
    the result to shardings.

    >>> whole = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec())
    >>> weights = jax.numpy.ones(3)
    >>> made = make(lambda key: {"w": weights + 0}, jax.random.key(0), lambda shapes: {"w": whole})
    >>> made["w"].sharding == whole, weights.is_deleted()
    (True, False)
    """
    # Traced with the key's shape, since the key itself may lie on another mesh than the one that is traced under.
    jaxpr, shapes = jax.make_jaxpr(init, return_shape=True)(jax.ShapeDtypeStruct(key.shape, key.dtype))
    placed = place(shapes)
    leaves, treedef = jax.tree.flatten(placed)
    whole = NamedSharding(leaves[0].mesh, PartitionSpec())
    # A captured array that reaches an output, possibly through a copy or a cast, gets that output's sharding at once.
    sharding_of = {id(var): sharding for var, sharding in zip(jaxpr.jaxpr.outvars, leaves, strict=True)}
    for eqn in reversed(jaxpr.jaxpr.eqns):
        if eqn.primitive.name in ("copy", "convert_element_type") and id(eqn.outvars[0]) in sharding_of:
            sharding_of[id(eqn.invars[0])] = sharding_of[id(eqn.outvars[0])]
    consts = zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)
    captured = [globally(x, sharding_of.get(id(var), whole)) for var, x in consts]

    def run(captured: list[Array], key: Array) -> list[Array]:
        return jax.core.eval_jaxpr(jaxpr.jaxpr, captured, key)

    return jax.tree.unflatten(treedef, jax.jit(run, out_shardings=leaves)(captured, globally(key, whole)))
