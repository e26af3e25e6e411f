"""The arrays of a model by name, without the state that only training needs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np

from jaxkd import adapters
from jaxkd._core.arrays import casts
from jaxkd._core.tree_paths import by_parts
from jaxkd.types import PyTree, TrainState, Variables


def student_of(source: Any) -> Variables:
    """Returns the `Variables` of a model, or of the student in a train state.

    Of a train state, the teacher, the objective's parameters and state, and the optimizer state are left out.

    Args:
      source: a `TrainState`, `Variables`, linen's ``{"params": ..., ...}``, or an nnx module or its state.

    Raises:
      TypeError: the source is none of these.

    >>> student_of(TrainState(Variables({"w": 1}), teacher={"w": 2}, objective={}, opt_state={}, step=0, key=0))
    Variables(params={'w': 1}, state={})
    """
    return source.student if isinstance(source, TrainState) else adapters.variables(source)


def flatten(source: Any) -> dict[str, Any]:
    """Returns the arrays of a model by name, ``params/…``, ``batch_stats/…``, ….

    Parameters come first. Weights may have any form that `student_of` takes.

    Raises:
      TypeError: the source has an unknown form, or a leaf is not an array.
      ValueError: two arrays have the same name.

    >>> flatten({"params": {"Dense_0": {"bias": np.zeros(3)}}, "batch_stats": {"mean": np.ones(2)}})
    {'params/Dense_0/bias': array([0., 0., 0.]), 'batch_stats/mean': array([1., 1.])}
    """
    return {"/".join(path): leaf for path, leaf in _arrays(source).items()}


def collections_of(variables: Variables) -> dict[str, PyTree]:
    """Returns weights in linen's layout: ``params`` and the collections of the state.

    Every file format stores this layout.

    Raises:
      TypeError: the state is not a mapping.
      ValueError: a collection of the state is named ``params``.

    >>> collections_of(Variables({"w": 1}, {"batch_stats": {"mean": 0}}))
    {'params': {'w': 1}, 'batch_stats': {'mean': 0}}
    """
    state = variables.state
    if not jax.tree.leaves(state):
        return {"params": variables.params}
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a mapping of names, got {type(state).__name__}.")
    if "params" in state:
        raise ValueError("state: expected no collection named 'params', which names the parameters. Rename it.")
    return {"params": variables.params, **state}


def variables_of(collections: Mapping[str, PyTree], like: Variables) -> Variables:
    """Inverts `collections_of`; a state without arrays is taken from ``like``."""
    state = {name: value for name, value in collections.items() if name != "params"}
    return Variables(collections["params"], state or like.state)


def on_host(source: Any) -> dict[tuple[str, ...], np.ndarray]:
    """Returns C-contiguous NumPy arrays by path, as files store them.

    Raises:
      TypeError: as `flatten`.
      ValueError: as `flatten`; or another host holds a part of an array.
    """
    return {path: _on_host("/".join(path), leaf) for path, leaf in _arrays(source).items()}


def _arrays(source: Any) -> dict[tuple[str, ...], Any]:
    arrays: dict[tuple[str, ...], Any] = {}
    names = set()
    for path, leaf in by_parts(collections_of(student_of(source))).items():
        name = "/".join(path)
        if not hasattr(leaf, "dtype") or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise TypeError(f"{name}: expected an array of numbers, got {kind}. Leave it out of the weights.")
        if name in names:
            raise ValueError(f"two arrays have the name {name!r}, which cannot be distinguished in a file. Rename one.")
        names.add(name)
        arrays[path] = leaf
    return {path: arrays[path] for path in sorted(arrays, key=lambda path: path[0] != "params")}


def _on_host(name: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        raise ValueError(
            f"{name}: this process holds only a part of the array. Gather the weights first, in all processes: "
            "jax.experimental.multihost_utils.process_allgather(variables, tiled=True)."
        )
    return np.asarray(leaf, order="C")


def producer() -> str:
    """Returns the name and version of this package, for a file's metadata."""
    try:
        return f"jaxkd-toolkit {metadata.version('jaxkd-toolkit')}"
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        return "jaxkd-toolkit"


def cast(source: Any, dtype: Any) -> Variables:
    """Returns the `Variables` of a model with floating-point parameters in a dtype.

    In bfloat16 a file takes half the size. Finite values stay finite: those beyond the range of the dtype are clipped.
    The state (running statistics) is unchanged: it is small, and its precision matters. Weights may have any form that
    `student_of` takes.

    >>> small = cast({"params": {"w": np.ones(2)}, "batch_stats": {"mean": np.ones(2)}}, jax.numpy.bfloat16)
    >>> small.params["w"].dtype, small.state["batch_stats"]["mean"].dtype
    (dtype(bfloat16), dtype('float64'))
    """
    variables = student_of(source)

    return variables._replace(params=casts.cast_floats(variables.params, dtype))
