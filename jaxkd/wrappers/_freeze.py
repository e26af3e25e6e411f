"""Frozen parts of a model: parameters that are not trained, with their statistics."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax

from jaxkd._core import checks
from jaxkd._core.model_calls import held_in_inference
from jaxkd._core.tree_paths import by_path
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables

_FROZEN, _MODEL = "frozen", "model"


def freeze(model: Model, include: str) -> Model:
    """Freezes a part of a model: its parameters, its statistics and its mode.

    The parameters of the part are state, not ``params``: they get no gradient and no slots, and no optimizer moves
    them, not even by weight decay. Running statistics and other state of the part do not change. Its BatchNorms
    normalize by their running statistics and its Dropouts drop nothing, in training too, if an adapter of Flax made the
    model.

    Args:
      model: model from an adapter.
      include: regular expression to find in the paths of the part's parameters, such as ``"^encoder/"``. Modules and
        state of these paths belong to the part.

    Returns:
      A `Model` with ``Variables(the other params, {"frozen": params, "model": state})``. A None takes the place of a
      parameter in the tree that lacks it. `unfreeze` returns the variables of the model itself.

    Raises:
      ValueError: ``init`` raises it if no parameter has such a path, or every one does.

    >>> import jax.numpy as jnp
    >>> from jaxkd import adapters
    >>> linear = adapters.plain(lambda key, x: {"a": jnp.eye(2), "b": jnp.eye(2)}, lambda w, x: x @ w["a"] @ w["b"])
    >>> variables = freeze(linear, "^a").init(jax.random.key(0), {"image": jnp.ones((3, 2))})
    >>> list(by_path(variables.params)), list(by_path(variables.state))
    (['b'], ['frozen/a'])
    """
    inside = re.compile(include)

    def init(key: Array, batch: Batch) -> Variables:
        variables = model.init(key, batch)
        paths = by_path(variables.params)
        chosen = [inside.search(path) is not None for path in paths]
        if all(chosen) or not any(chosen):
            raise ValueError(
                f"freeze, include: expected an expression for a part of the parameters, got {include!r}, which is "
                f"found in {'every path' if all(chosen) else 'no path'}: {checks.describe(paths)}."
            )
        return _split(variables, chosen)

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        token = held_in_inference.set(lambda path: inside.search(path) is not None)
        try:
            outputs, state = model.apply(unfreeze(variables), batch, key=key, train=train)
        finally:
            held_in_inference.reset(token)
        old = variables.state[_MODEL]
        collections = set(old) - set(variables.params) if isinstance(variables.params, Mapping) else set()

        def kept(path: str) -> bool:
            first, _, rest = path.partition("/")  # linen's paths of state begin with the collection
            return inside.search(rest if first in collections else path) is not None

        leaves = [
            o if kept(path) else n for (path, o), n in zip(by_path(old).items(), jax.tree.leaves(state), strict=True)
        ]
        return outputs, {**variables.state, _MODEL: jax.tree.unflatten(jax.tree.structure(old), leaves)}

    return Model(init, apply)


def unfreeze(variables: Variables) -> Variables:
    """Returns the variables of a model itself from those of `freeze`.

    Args:
      variables: variables of a frozen model, such as ``state.student``.

    Raises:
      ValueError: they are those of another model.

    >>> unfreeze(Variables({"a": None, "b": 2}, {"frozen": {"a": 1, "b": None}, "model": {}}))
    Variables(params={'a': 1, 'b': 2}, state={})
    """
    if not isinstance(variables.state, Mapping) or set(variables.state) != {_FROZEN, _MODEL}:
        raise ValueError("unfreeze: expected the variables of a model from freeze, got those of another model.")
    params = jax.tree.map(
        lambda trained, frozen: frozen if trained is None else trained,
        variables.params,
        variables.state[_FROZEN],
        is_leaf=lambda x: x is None,
    )
    return Variables(params, variables.state[_MODEL])


def _split(variables: Variables, chosen: list[bool]) -> Variables:
    leaves = jax.tree.leaves(variables.params)
    treedef: Any = jax.tree.structure(variables.params)
    trained: Any = [None if frozen else x for x, frozen in zip(leaves, chosen, strict=True)]
    kept: Any = [x if frozen else None for x, frozen in zip(leaves, chosen, strict=True)]
    trained, kept = (jax.tree.unflatten(treedef, leaves) for leaves in (trained, kept))
    return Variables(trained, {_FROZEN: kept, _MODEL: variables.state})
