"""Objectives that compare features behind learned layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxkd._core import checks
from jaxkd._core.batches import lookup
from jaxkd.objectives._compose import replace
from jaxkd.objectives._tokens import mask_feature
from jaxkd.objectives.layers import connector, connector_init
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars


def with_projection(
    init: Callable[[Array, Context], ObjectiveVars],
    change: Callable[[Any, Any, Context, Array | None], tuple[Context, Any]],
    loss: Objective,
) -> Objective:
    """Applies an objective without parameters behind learned layers.

    Args:
      init: ``(key, context of shapes) -> ObjectiveVars``, parameters and state of the layers.
      change: ``(params, state, context, key) -> (context, new state)``; the new context holds the mapped features (see
        `jaxkd.objectives.replace`). The key is None in evaluation.
      loss: objective that compares the mapped features, such as a `jaxkd.term`.

    Returns:
      An `Objective` with the loss's value and metrics. Features that do not fit are an error at initialization.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> from jaxkd.objectives import term
    >>> scaled = with_projection(
    ...     lambda key, context: ObjectiveVars({"scale": jnp.ones(())}),
    ...     lambda p, s, c, key: (replace(c, {"student/f": p["scale"] * lookup(c, "student/f")}), s),
    ...     term(losses.hint_mse, "student/f", "teacher/f"),
    ... )
    >>> context = Context({"f": jnp.ones((4, 2))}, {"f": jnp.ones((4, 2))}, {}, 0)
    >>> scaled.apply({"scale": jnp.array(3.0)}, {}, context, None).value
    Array(4., dtype=float32)
    """
    checks.contract("with_projection, loss", loss, Objective)

    def init_and_check(key: Array, context: Context) -> ObjectiveVars:
        params, state = init(key, context)
        # An abstract evaluation raises the errors of the first step; no axis is mapped at initialization.
        local = context._replace(axis_name=None)
        jax.eval_shape(lambda p, s, c: apply(p, s, c, None).value, params, state, local)
        return ObjectiveVars(params, state)

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        context, state = change(params, state, context, key)
        return loss.apply({}, {}, context, key)._replace(state=state)

    return Objective(init_and_check, apply)


def connected(loss: Objective, student: str, teacher: str, **entries: Array) -> Objective:
    """Applies an objective to the student's feature behind a learned connector.

    The connector's output, with the teacher's channels, replaces the student's feature. The loss reads the ``entries``
    under ``"batch/NAME"``.
    """

    def init(key: Array, context: Context) -> ObjectiveVars:
        return connector_init(key, *(lookup(context, path).shape[-1] for path in (student, teacher)))

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        feature = mask_feature(context, lookup(context, student))
        feature, state = connector(params, state, feature, context, train=key is not None)
        return replace(context, {student: feature} | {f"batch/{name}": x for name, x in entries.items()}), state

    return with_projection(init, change, loss)
