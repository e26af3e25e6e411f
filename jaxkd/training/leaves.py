"""The leaves of a state by name: how a checkpoint stores them, and how two states are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.types import PyTree

__all__ = ["describe", "differences", "flat", "is_key", "manifest", "named", "nest", "template"]


def named(tree: PyTree) -> dict[str, Any]:
    """Every leaf by the path to it, with ``/`` between its parts.

    Args:
      tree: any pytree.

    Returns:
      The leaves in the tree's order.

    Raises:
      ValueError: two leaves have one name.

    >>> named({"a": [1, 2], "b/c": 3})
    {'a/0': 1, 'a/1': 2, 'b%2Fc': 3}
    """
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        # A slash within a part (a term's name may have one) must not look like a level.
        name = "/".join(_part(entry).replace("%", "%25").replace("/", "%2F").replace(".", "%2E") for entry in path)
        if name in found:
            raise ValueError(f"two arrays of the state have the name {name!r}, and could not be told apart later.")
        found[name] = leaf
    return found


def manifest(tree: PyTree) -> dict[str, str]:
    """Names, dtypes and shapes.

    Args:
      tree: of arrays, or of what `jax.eval_shape` gives.

    >>> manifest({"w": jnp.zeros((2, 3)), "key": jax.random.key(0)})
    {'key': 'key<fry>[]', 'w': 'float32[2,3]'}
    """
    return {name: describe(leaf) for name, leaf in named(tree).items()}


def describe(leaf: Any) -> str:
    """Dtype and shape of an array."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return f"{dtype}[{','.join(map(str, np.shape(leaf)))}]"


def differences(stored: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Where two manifests differ, one line each.

    Args:
      stored: of a checkpoint.
      wanted: of a state.

    Returns:
      Nothing if the one can be restored into the other.

    >>> differences({"w": "float32[2]"}, {"w": "float32[3]"})
    ['w: float32[2] in the checkpoint, float32[3] in the state']
    """
    problems = []
    for name in sorted({**stored, **wanted}):
        if name not in stored:
            problems.append(f"{name}: missing in the checkpoint; the state has {wanted[name]}")
        elif name not in wanted:
            problems.append(f"{name}: {stored[name]} in the checkpoint; the state has no such array")
        elif stored[name] != wanted[name]:
            problems.append(f"{name}: {stored[name]} in the checkpoint, {wanted[name]} in the state")
    return problems


def nest(by_name: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, one level for each part of a name."""
    nested: dict[str, Any] = {}
    for name, leaf in by_name.items():
        *parents, last = name.split("/")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = leaf
    return nested


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The way back from `nest`."""
    found: dict[str, Any] = {}
    for part, value in nested.items():
        found |= flat(value, f"{prefix}{part}/") if isinstance(value, Mapping) else {prefix + part: value}
    return found


def is_key(leaf: Any) -> bool:
    """Whether it is an array of typed PRNG keys."""
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", np.dtype(bool)), jax.dtypes.prng_key)


def template(leaf: Any) -> Any:
    """What orbax is to read for a leaf: numbers on the leaf's devices, or on the host if nobody chose a device."""
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    dtype = data.dtype if hasattr(data, "dtype") else jnp.result_type(data)
    sharding = getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
    if sharding is None:
        return np.empty(np.shape(data), dtype)
    return jax.ShapeDtypeStruct(np.shape(data), dtype, sharding=sharding)


def _part(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
