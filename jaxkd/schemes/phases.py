"""One of several programs, chosen by the step: what `staged` and `relay` have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.types import Array, Batch, Mean, Metrics, TrainState

__all__ = ["switch"]

Branch = Callable[[TrainState, Batch], tuple[Any, Metrics]]


def switch(
    step: Array, state: TrainState, batch: Batch, branches: Sequence[Branch], starts: Sequence[int], name: str
) -> tuple[Any, Metrics]:
    """What the branch of the present phase returns, with metrics of one structure whichever it is.

    Args:
      step: that decides.
      state: for the branch.
      batch: for the branch.
      branches: one for each phase; each returns something and its metrics.
      starts: the step at which each phase begins, ascending from 0.
      name: of the metric that says which phase it was.

    Returns:
      What the branch returned, and the metrics of all branches by name: those of the others have a count of 0.
    """
    names: dict[str, Any] = {}
    for branch in branches:
        names |= jax.eval_shape(branch, state, batch)[1]

    def complete(i: int) -> Callable[..., Any]:
        def run(state: TrainState, batch: Batch) -> tuple[Any, Metrics]:
            result, found = branches[i](state, batch)
            absent = {name: Mean(*(jnp.zeros(x.shape, x.dtype) for x in names[name])) for name in names}
            return result, {**absent, **found, name: Mean(jnp.float32(i), jnp.float32(1))}

        return run

    phase = jnp.searchsorted(jnp.array(starts, jnp.int32), step, side="right") - 1
    result: tuple[Any, Metrics] = jax.lax.switch(phase, [complete(i) for i in range(len(branches))], state, batch)
    return result


def starts_of(lengths: Sequence[int | None], what: str) -> list[int]:
    """The steps at which phases of these lengths begin.

    Args:
      lengths: steps of each; None for the last one, which lasts until training ends.
      what: whose they are, for the message.

    Raises:
      ValueError: there are none, one is not positive, or not exactly the last one is None.

    >>> starts_of([3, 4, None], "relay, leg")
    [0, 3, 7]
    """
    if not lengths:
        raise ValueError(f"{what}s: expected at least one, got none.")
    starts = [0]
    for i, steps in enumerate(lengths):
        last = i == len(lengths) - 1
        if last != (steps is None):
            expected = "None, as the last one lasts until training ends" if last else "a number"
            raise ValueError(f"{what} {i}, steps: expected {expected}, got {steps}.")
        if steps is not None:
            if steps < 1:
                raise ValueError(f"{what} {i}, steps: expected at least 1, got {steps}.")
            starts.append(starts[-1] + steps)
    return starts
