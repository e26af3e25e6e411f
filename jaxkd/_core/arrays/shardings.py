"""Placements of arrays from other meshes and devices, or on explicit axes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxkd.types import PyTree


def automatic_mesh(mesh: Any) -> Mesh:
    """Returns a mesh of the same devices whose axes are automatic.

    With automatic axes, the compiler places intermediate results; explicit axes would require it of each operation.
    """
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def automatic(tree: PyTree) -> PyTree:
    """Returns a tree whose arrays are where they were, on meshes with automatic axes.

    An array on a mesh with explicit axes has its placement in its type, so that no program can use it together with
    arrays of another mesh. Those of the mesh that the user has set (`jax.set_mesh`) are returned unmodified.

    >>> mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    >>> x = jax.device_put(jax.numpy.ones(4), NamedSharding(mesh, PartitionSpec("data")))
    >>> automatic(x).sharding.mesh.axis_types == (AxisType.Auto,), tuple(automatic(x).sharding.spec)
    (True, ('data',))
    """
    current = jax.sharding.get_abstract_mesh()

    def leaf(x: Any) -> Any:
        if not _is_placed(x) or not isinstance(x.sharding, NamedSharding):
            return x
        mesh: Any = x.sharding.mesh
        if all(kind == AxisType.Auto for kind in mesh.axis_types) or mesh.abstract_mesh == current:
            return x
        with jax.ensure_compile_time_eval():  # weights may be captured by a function that is being traced
            return jax.device_put(x, NamedSharding(automatic_mesh(mesh), x.sharding.spec))

    return jax.tree.map(leaf, tree)


def together(tree: PyTree, *others: PyTree) -> tuple[PyTree, ...]:
    """Returns trees that one program can use, on the devices of the first one.

    All arrays are on automatic axes, and on the devices of the first committed array.

    Arrays that are not committed to devices, and those that other hosts share, are returned unmodified.

    >>> a, b = jax.device_put((jax.numpy.ones(1), jax.numpy.ones(1)), (jax.devices()[1], jax.devices()[0]))
    >>> [x.devices() == a.devices() for x in together({"a": a}, b)[1:]]
    [True]
    """
    trees: tuple[PyTree, ...] = automatic((tree, *others))
    placed = [x for x in jax.tree.leaves(trees) if _is_placed(x) and x.committed]
    if not placed:
        return trees
    first = placed[0].sharding
    whole = NamedSharding(first.mesh, PartitionSpec()) if isinstance(first, NamedSharding) else first

    def leaf(x: Any) -> Any:
        elsewhere = _is_placed(x) and x.committed and x.sharding.device_set != first.device_set
        return jax.device_put(x, whole) if elsewhere and x.is_fully_addressable else x

    moved: tuple[PyTree, ...] = jax.tree.map(leaf, trees)
    return moved


def differ(*trees: PyTree) -> bool:
    """Returns whether `together` would change the trees.

    >>> differ({"x": jax.numpy.ones(1)}, {})
    False
    """
    return any(a is not b for a, b in zip(*map(jax.tree.leaves, (trees, together(*trees))), strict=True))


def explaining_axes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a step or an evaluation whose operations explicit axes may not permit.

    Raises:
      ValueError: from the wrapped function: an operation, often one of the model, has no result on these axes; the
        message names the placements that have no such axes.

    >>> mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    >>> x = jax.device_put(jax.numpy.ones((4, 4)), NamedSharding(mesh, PartitionSpec("data")))
    >>> jax.jit(explaining_axes(lambda x: x.reshape(8, 2) + x.T.reshape(8, 2)))(x)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: arrays on a mesh with explicit axes: ...
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            if type(error).__name__ != "ShardingTypeError":  # which JAX does not export
                raise
            raise ValueError(
                "arrays on a mesh with explicit axes: an operation of the step has no result on them "
                f"({str(error).partition('. ')[0]}). Use jaxkd.parallel.jit(kd) or jaxkd.parallel.shard(kd, mesh), "
                "whose programs have automatic axes, or a mesh with axis_types=(jax.sharding.AxisType.Auto,)."
            ) from error

    return run


def _is_placed(x: Any) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
