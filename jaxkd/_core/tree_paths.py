"""Leaves of a state by name, as checkpoints store and compare them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.types import PyTree


def named(tree: PyTree) -> dict[str, Any]:
    """Returns every leaf by its path, with ``/`` between parts, in the tree's order.

    Raises:
      ValueError: two leaves have the same name.

    >>> named({"a": [1, 2], "b/c": 3})
    {'a/0': 1, 'a/1': 2, 'b%2Fc': 3}
    """
    # Escaped, because a part may hold a slash itself, such as the name of a term.
    escape = str.maketrans({"%": "%25", "/": "%2F", ".": "%2E"})
    return {"/".join(part.translate(escape) for part in path): leaf for path, leaf in by_parts(tree).items()}


def manifest(tree: PyTree) -> dict[str, str]:
    """Returns the dtype and shape of every leaf by name.

    >>> manifest({"w": jnp.zeros((2, 3)), "key": jax.random.key(0)})
    {'key': 'key<fry>[]', 'w': 'float32[2,3]'}
    """
    return {name: describe(leaf) for name, leaf in named(tree).items()}


def describe(leaf: Any) -> str:
    """Returns dtype and shape of an array as one string."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return f"{dtype}[{','.join(map(str, np.shape(leaf)))}]"


def differences(stored: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Returns one line for each leaf in which the manifests of two states differ.

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


def nest(leaves: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns leaves as nested dicts, one level for each part of a name or path.

    >>> nest({"a/b": 1, ("a", "c"): 2})
    {'a': {'b': 1, 'c': 2}}
    """
    nested: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/") if isinstance(path, str) else path
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = leaf
    return nested


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Inverse of `nest`."""
    found: dict[str, Any] = {}
    for part, value in nested.items():
        found |= flat(value, f"{prefix}{part}/") if isinstance(value, Mapping) else {prefix + part: value}
    return found


def is_key(leaf: Any) -> bool:
    """Returns whether a leaf is an array of typed PRNG keys."""
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", np.dtype(bool)), jax.dtypes.prng_key)


def template(leaf: Any) -> Any:
    """Returns the target that orbax restores a leaf into.

    It has the leaf's devices, or is a host array if the leaf is not committed to a device.
    """
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


def by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, without escapes.

    >>> by_path({"Dense_0": {"kernel": 1}, "list": [2]})
    {'Dense_0/kernel': 1, 'list/0': 2}
    """
    return {"/".join(path): leaf for path, leaf in by_parts(tree).items()}


def by_parts(tree: PyTree) -> dict[tuple[str, ...], Any]:
    """Returns the leaves of a tree by the parts of their paths, as strings.

    Raises:
      ValueError: two leaves have the same path, such as those of the keys 1 and "1".
    """
    found: dict[tuple[str, ...], Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        parts = tuple(map(_part, path))
        if parts in found:
            raise ValueError(f"state: expected arrays with different names, got two named {'/'.join(parts)!r}.")
        found[parts] = leaf
    return found
