"""What a wrapper remembers between steps: a slot of its own in ``opt_state``, unseen by the wrapped distiller."""

from __future__ import annotations

from collections.abc import Mapping

from jaxkd.types import PyTree, TrainState


def put(state: TrainState, name: str, value: PyTree, wrapper: str) -> TrainState:
    """The state with a slot more.

    Raises:
      TypeError: the optimizer states have no names.
      ValueError: there is such a slot already.
    """
    if not isinstance(state.opt_state, Mapping):
        raise TypeError(
            f"{wrapper}: expected a state whose opt_state is a dict, to keep {name!r} in it, got "
            f"{type(state.opt_state).__name__}."
        )
    if name in state.opt_state:
        raise ValueError(f"{wrapper}: opt_state has {name!r} already; wrap a distiller in it once.")
    return state._replace(opt_state={**state.opt_state, name: value})


def take(state: TrainState, name: str, wrapper: str) -> tuple[TrainState, PyTree]:
    """The state as the wrapped distiller knows it, and what is in the slot.

    Raises:
      ValueError: there is no such slot.
    """
    if not isinstance(state.opt_state, Mapping) or name not in state.opt_state:
        raise ValueError(
            f"{wrapper}: the state has no opt_state[{name!r}]; it is another distiller's. Begin with the init of the "
            "wrapped one."
        )
    rest = {key: value for key, value in state.opt_state.items() if key != name}
    return state._replace(opt_state=rest), state.opt_state[name]
