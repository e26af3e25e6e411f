"""Slots in ``opt_state`` for the state of wrappers.

`take` removes a wrapper's slot before the wrapped distiller runs and `put` adds it afterwards, so that any wrapper
composes with any distiller. Checkpoints and placements treat the slot like any other part of the `TrainState`.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxkd.types import PyTree, TrainState


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
