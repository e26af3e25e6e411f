"""Selection of one of several programs by the step, for `staged` and `sequential`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.metrics import widened
from jaxkd.types import Array, Batch, Mean, Metrics, TrainState

Branch = Callable[[TrainState, Batch], tuple[Any, Metrics]]


def switch(
    step: Array, state: TrainState, batch: Batch, branches: Sequence[Branch], starts: Sequence[int], name: str
) -> tuple[Any, Metrics]:
    """Runs the branch of the current phase; all branches report the same metrics.

    Args:
      step: step that selects the phase.
      state: state, passed to the branch.
      batch: batch, passed to the branch.
      branches: function ``(state, batch) -> (result, metrics)`` of each phase. All results have the same structure.
      starts: first step of each phase, ascending from 0.
      name: name of the metric that reports the number of the phase. Metrics of other branches have a count of 0.
    """
    phase = jnp.searchsorted(jnp.array(starts, jnp.int32), step, side="right") - 1
    result, metrics = select(phase, state, batch, branches)
    return result, {**metrics, name: Mean(phase.astype(jnp.float32), jnp.float32(1))}


def select(index: Array, state: TrainState, batch: Batch, branches: Sequence[Branch]) -> tuple[Any, Metrics]:
    """Runs the branch of the index; metrics of the others have a count of 0."""
    # `jax.lax.switch` needs results of one structure, so each branch adds the metrics that only others report, and
    # totals get as many parts as the longest.
    shapes: dict[str, Any] = {}
    for branch in branches:
        for name, metric in jax.eval_shape(branch, state, batch)[1].items():
            shapes[name] = jax.eval_shape(widened, metric, shapes.get(name, metric))

    def with_all_metrics(branch: Branch) -> Branch:
        def run(state: TrainState, batch: Batch) -> tuple[Any, Metrics]:
            result, metrics = branch(state, batch)
            absent = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return result, {**absent, **{name: widened(metric, shapes[name]) for name, metric in metrics.items()}}

        return run

    selected: tuple[Any, Metrics] = jax.lax.switch(index, [with_all_metrics(b) for b in branches], state, batch)
    return selected


def starts_of(lengths: Sequence[int | None], what: str) -> list[int]:
    """Returns the first step of each phase.

    Args:
      lengths: number of steps of each phase; None for the last one, which lasts until training ends.
      what: name of a phase in error messages.

    Raises:
      ValueError: there are no phases, a length is not positive, or not exactly the last one is None.

    >>> starts_of([3, 4, None], "sequential, phase")
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
