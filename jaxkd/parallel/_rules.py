"""Rules that place the arrays of a state on a mesh, by their paths.

A rule is matched against the path of each array in the `TrainState`. The optimizer's slots have the structure of the
parameters, so their paths contain those of the parameters, and one rule places a parameter and its slots.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd._core import checks
from jaxkd._core.tree_paths import by_path
from jaxkd.types import PyTree

Rule = PartitionSpec | Callable[[tuple[int, ...]], PartitionSpec]
"""A `PartitionSpec` for all arrays that match, or a function from an array's shape to one."""


def fully_sharded(mesh: Mesh, axis: str | None = None, *, min_size: int = 2**14) -> Callable[..., PartitionSpec]:
    """Returns a rule that gives every device an equal part of each large array.

    Also known as: ZeRO stage 3, fully sharded data parallelism (FSDP).

    The largest dimension that divides is split; of equal ones the last. Each of D devices then holds 1/D of the
    parameters, gradients and optimizer slots, and the compiler gathers an array where it is used. Rajbhandari et al.,
    "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020.

    Args:
      mesh: the devices.
      axis: mesh axis to split over; the first by default. It may be the one that splits the batch.
      min_size: number of elements below which an array is replicated, because gathering it would cost more than
        holding it.

    Returns:
      A function from a shape to a `PartitionSpec`, for the ``rules`` of `shard`.

    Raises:
      ValueError: the mesh has no such axis.

    >>> rule = fully_sharded(jax.make_mesh((4,), ("data",)), min_size=32)
    >>> [tuple(rule(shape)) for shape in ((3, 3, 16, 64), (10, 4), (30,), (7, 9))]
    [(None, None, None, 'data'), (None, 'data'), (), ()]
    """
    axis = mesh.axis_names[0] if axis is None else axis
    checks.known(axis, mesh.axis_names, "fully_sharded, mesh axis")
    parts = mesh.shape[axis]

    def rule(shape: tuple[int, ...]) -> PartitionSpec:
        fitting = [(size, i) for i, size in enumerate(shape) if size and size % parts == 0]
        if math.prod(shape) < min_size or not fitting:
            return PartitionSpec()
        return PartitionSpec(*(None,) * max(fitting)[1], axis)

    return rule


def layout(state: PyTree, mesh: Mesh, rules: Mapping[str, Rule]) -> PyTree:
    """Returns the sharding of every array of a state, or of its shapes.

    The first regular expression that is found in an array's path gives its rule; an array that matches none is
    replicated.

    Raises:
      ValueError: a rule matches no path, has more dimensions than an array, or asks for parts that do not divide it.

    >>> mesh = jax.make_mesh((2,), ("data",))
    >>> placed = layout({"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)}, mesh, {"w": PartitionSpec("data")})
    >>> tuple(placed["w"].spec), tuple(placed["b"].spec)
    (('data',), ())
    """
    paths, treedef = by_path(state), jax.tree.structure(state)
    used, placed = set(), []
    for path, x in paths.items():
        pattern = next((pattern for pattern in rules if re.search(pattern, path)), None)
        used.add(pattern)
        rule = PartitionSpec() if pattern is None else rules[pattern]
        spec = rule if isinstance(rule, PartitionSpec) else rule(jnp.shape(x))
        _check(f"shard, rule {pattern!r}: {path} {checks.shape(x)}", jnp.shape(x), spec, mesh)
        placed.append(NamedSharding(mesh, spec))
    if unused := [pattern for pattern in rules if pattern not in used]:
        known = [path for path in paths if not path.startswith("opt_state")]
        raise ValueError(f"shard, rules: {unused} match no path of the state, which has {', '.join(known)}.")
    return jax.tree.unflatten(treedef, placed)


def _check(what: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
    if len(spec) > len(shape):
        raise ValueError(
            f"{what} has fewer dimensions than {spec}. Make the rule a function of the shape, or put a rule for this "
            "path before it, such as PartitionSpec()."
        )
    for size, entry in zip(shape, spec, strict=False):
        names = (entry,) if isinstance(entry, str) else tuple(entry or ())
        for name in names:
            checks.known(name, mesh.axis_names, "shard, rules, mesh axis")
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts:
            raise ValueError(
                f"{what} does not divide into {parts} parts of the mesh axis {', '.join(map(repr, names))}. Make its "
                "size a multiple, or replicate it."
            )
