"""Train states: dtypes and shapes of arrays, and slots of wrappers.

`take` removes a wrapper's slot from ``opt_state`` before the wrapped distiller runs and `put` adds it afterwards, so
that any wrapper composes with any distiller. Checkpoints and placements treat a slot like any other part of the
`TrainState`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.types import Array, PyTree, TrainState


def strongly_typed(tree: PyTree) -> PyTree:
    """Returns a tree without weakly typed arrays, such as those made from ``1.0``.

    The first step would return them strongly typed, and the second would be traced again.
    """

    def convert(x: Any) -> Array:
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else jax.lax.convert_element_type(x, x.dtype)

    return jax.tree.map(convert, tree)


def shape_of(x: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of an array once it is a JAX array.

    NumPy's int64 labels, for instance, become int32 unless 64 bits are enabled.
    """
    dtype = x.dtype if hasattr(x, "dtype") else jnp.asarray(x).dtype
    extended = jnp.issubdtype(dtype, jax.dtypes.extended)
    return jax.ShapeDtypeStruct(jnp.shape(x), dtype if extended else jax.dtypes.canonicalize_dtype(dtype))


def put(state: TrainState, name: str, value: PyTree, wrapper: str) -> TrainState:
    """Returns the state with an additional slot; errors name ``wrapper``.

    Raises:
      TypeError: ``opt_state`` is not a dict.
      ValueError: the slot exists already.
    """
    if not isinstance(state.opt_state, Mapping):
        raise TypeError(
            f"{wrapper}: expected a state whose opt_state is a dict, to which {name!r} can be added, got "
            f"{type(state.opt_state).__name__}."
        )
    if name in state.opt_state:
        raise ValueError(f"{wrapper}: opt_state has {name!r} already; apply this wrapper only once.")
    return state._replace(opt_state={**state.opt_state, name: value})


def take(state: TrainState, name: str, wrapper: str) -> tuple[TrainState, PyTree]:
    """Returns the wrapped distiller's state and the slot; errors name ``wrapper``.

    Raises:
      ValueError: the slot does not exist.
    """
    if not isinstance(state.opt_state, Mapping) or name not in state.opt_state:
        raise ValueError(
            f"{wrapper}: the state has no opt_state[{name!r}], so another distiller made it. Use the init of the "
            "distiller that this wrapper returned."
        )
    rest = {key: value for key, value in state.opt_state.items() if key != name}
    return state._replace(opt_state=rest), state.opt_state[name]
