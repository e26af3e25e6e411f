"""Losses on features that learned layers have mapped: the form that most objectives with parameters have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxkd.types import Array, Context, LossOut, LossVars, Objective


def mapped(
    init: Callable[[Array, Context], LossVars],
    change: Callable[[Any, Any, Context, Array | None], tuple[Context, Any]],
    loss: Objective,
) -> Objective:
    """An objective without parameters, on a context that learned layers have changed.

    Args:
      init: ``(key, context of shapes) -> LossVars``, the parameters and the state of the layers.
      change: ``(params, state, context, key) -> (context, new state)``; the new context holds what the layers made of
        the features (see `jaxkd.objectives.replace`). The key is None in evaluation.
      loss: what compares them, such as a `jaxkd.term`.

    Returns:
      An `Objective` with the loss's value and metrics. Features that do not fit are found when it is initialised.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> from jaxkd.objectives.compose import lookup, replace, term
    >>> scaled = mapped(
    ...     lambda key, context: LossVars({"scale": jnp.ones(())}),
    ...     lambda p, s, c, key: (replace(c, {"student/f": p["scale"] * lookup(c, "student/f")}), s),
    ...     term(losses.hint_mse, "student/f", "teacher/f"),
    ... )
    >>> context = Context({"f": jnp.ones((4, 2))}, {"f": jnp.ones((4, 2))}, {}, 0)
    >>> scaled.apply({"scale": jnp.array(3.0)}, {}, context, None).value
    Array(4., dtype=float32)
    """

    def made(key: Array, context: Context) -> LossVars:
        params, state = init(key, context)
        alone = context._replace(axis_name=None)
        jax.eval_shape(lambda p, s, c: apply(p, s, c, None).value, params, state, alone)
        return LossVars(params, state)

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        context, state = change(params, state, context, key)
        return loss.apply({}, {}, context, key)._replace(state=state)

    return Objective(made, apply)
