"""What leaves with a model: its arrays by name, and nothing that only training needs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import adapters
from jaxkd.types import PyTree, TrainState, Variables


def student_of(source: Any) -> Variables:
    """The weights that a model runs with; of a train state, the student's alone.

    The teacher, the parameters and the state of the losses, and the optimizer stay behind.

    Args:
      source: a `TrainState`, `Variables`, linen's ``{"params": ..., ...}``, or an nnx module or its state.

    Returns:
      The `Variables`.

    Raises:
      TypeError: it is none of these.

    >>> student_of(TrainState(Variables({"w": 1}), teacher={"w": 2}, loss={}, opt_state={}, step=0, key=0))
    Variables(params={'w': 1}, state={})
    """
    return source.student if isinstance(source, TrainState) else adapters.variables(source)


def flatten(source: Any) -> dict[str, Any]:
    """Every array by its name: ``params/…`` for the parameters, ``batch_stats/…`` and so on for the rest.

    Args:
      source: weights in any form that `student_of` takes.

    Returns:
      Names to arrays, parameters first.

    Raises:
      TypeError: the source is of no known form, or one of its leaves is not an array.
      ValueError: two arrays have one name.

    >>> flatten({"params": {"Dense_0": {"bias": np.zeros(3)}}, "batch_stats": {"mean": np.ones(2)}})
    {'params/Dense_0/bias': array([0., 0., 0.]), 'batch_stats/mean': array([1., 1.])}
    """
    return {"/".join(path): leaf for path, leaf in _arrays(source).items()}


def collections_of(variables: Variables) -> dict[str, PyTree]:
    """Weights in linen's layout, which every file holds: ``params`` and, beside it, what the state consists of.

    Raises:
      ValueError: an entry of the state is called ``params`` itself.

    >>> collections_of(Variables({"w": 1}, {"batch_stats": {"mean": 0}}))
    {'params': {'w': 1}, 'batch_stats': {'mean': 0}}
    """
    state = variables.state
    if not jax.tree.leaves(state):
        return {"params": variables.params}
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a mapping of names, got {type(state).__name__}.")
    if "params" in state:
        raise ValueError("state: an entry is called 'params', as the parameters are; rename that part of the model.")
    return {"params": variables.params, **state}


def variables_of(collections: Mapping[str, PyTree], like: Variables) -> Variables:
    """`collections_of` undone; a state without arrays is that of ``like``."""
    state = {name: value for name, value in collections.items() if name != "params"}
    return Variables(collections["params"], state or like.state)


def on_host(source: Any) -> dict[tuple[str, ...], np.ndarray]:
    """The arrays of weights by path, on this host, each in the order of its axes: files hold memory as it lies.

    Raises:
      TypeError, ValueError: as `flatten`.
      ValueError: an array lies in part on other hosts.
    """
    return {path: _on_host("/".join(path), leaf) for path, leaf in _arrays(source).items()}


def _arrays(source: Any) -> dict[tuple[str, ...], Any]:
    arrays: dict[tuple[str, ...], Any] = {}
    names = set()
    for path, leaf in paths(collections_of(student_of(source))).items():
        name = "/".join(path)
        if not hasattr(leaf, "dtype") or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            found = getattr(leaf, "dtype", type(leaf).__name__)
            raise TypeError(f"{name}: expected an array of numbers, got {found}. Weights are arrays and nothing else.")
        if name in names:
            raise ValueError(f"two arrays have the name {name!r}, and could not be told apart later. Rename a module.")
        names.add(name)
        arrays[path] = leaf
    return {path: arrays[path] for path in sorted(arrays, key=lambda path: path[0] != "params")}


def _on_host(name: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        raise ValueError(
            f"{name}: this process holds a part of the array only. Gather the weights first, in all processes: "
            "jax.experimental.multihost_utils.process_allgather(variables, tiled=True)."
        )
    return np.asarray(leaf, order="C")


def paths(tree: PyTree) -> dict[tuple[str, ...], Any]:
    """The leaves of a tree by the path to each, its parts as strings."""
    return {tuple(map(_part, path)): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def nest(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Nested dicts of leaves by path.

    >>> nest({("a", "b"): 1, ("a", "c"): 2})
    {'a': {'b': 1, 'c': 2}}
    """
    nested: dict[str, Any] = {}
    for (*parents, last), leaf in leaves.items():
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = leaf
    return nested


def producer() -> str:
    """What wrote a file, for its metadata."""
    try:
        return f"jaxkd-toolkit {metadata.version('jaxkd-toolkit')}"
    except metadata.PackageNotFoundError:  # used from a source tree that is not installed
        return "jaxkd-toolkit"


def cast(source: Any, dtype: Any) -> Variables:
    """Weights with their floating parameters in another dtype, such as bfloat16, to write files of half the size.

    The state (running statistics) stays as it is: it is small, and its precision matters.

    Args:
      source: weights in any form that `student_of` takes.
      dtype: of the floating parameters.

    Returns:
      The `Variables`.

    >>> small = cast({"params": {"w": jnp.ones(2)}, "batch_stats": {"mean": jnp.ones(2)}}, jnp.bfloat16)
    >>> small.params["w"].dtype, small.state["batch_stats"]["mean"].dtype
    (dtype(bfloat16), dtype('float32'))
    """
    variables = student_of(source)

    def lower(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return variables._replace(params=jax.tree.map(lower, variables.params))


def _part(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
