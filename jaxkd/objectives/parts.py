"""Objectives on parts that the student does not have by itself: an ensemble of its members, targets made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxkd.types import Array, Context, LossOut, LossVars, Objective

__all__ = ["with_parts"]

_PARTS, _OBJECTIVE = "parts", "objective"


def with_parts(
    init: Callable[[Array, Context], LossVars],
    make: Callable[[Any, Any, Context, Array | None], tuple[Mapping[str, Array], Any]],
    objective: Objective,
) -> Objective:
    """An objective on a context whose student has further outputs, made of those that it has.

    With ``{"ensemble/logits": ...}`` made of the members of a group, ``between(..., student="a", teacher="ensemble")``
    has the ensemble teach a member.

    Args:
      init: ``(key, context of shapes) -> LossVars``, what the making learns and remembers.
      make: ``(params, state, context, key) -> (outputs, new state)``; the key is None in evaluation. Gradients go
        through what it makes.
      objective: what is minimised. It may own parameters and state as well.

    Returns:
      An `Objective` that owns ``{"parts": ..., "objective": ...}``, as far as there is something to own.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> from jaxkd.objectives.compose import lookup, term
    >>> doubled = with_parts(
    ...     lambda key, context: LossVars(),
    ...     lambda p, s, c, key: ({"double/logits": 2 * lookup(c, "student/logits")}, s),
    ...     term(losses.logit_mse, "student/logits", "student/double/logits"),
    ... )
    >>> doubled.apply({}, {}, Context({"logits": jnp.full((1, 2), 3.0)}, {}, {}, 0), None).value
    Array(9., dtype=float32)
    """

    def extended(context: Context, parts: Mapping[str, Array]) -> Context:
        return context._replace(student={**context.student, **parts})

    def start(key: Array, context: Context) -> LossVars:
        first, second = jax.random.split(key)
        own = init(first, context)
        alone = context._replace(axis_name=None)
        shapes = jax.eval_shape(lambda p, s, c: dict(make(p, s, c, None)[0]), own.params, own.state, alone)
        of_loss = objective.init(second, extended(context, shapes))
        return LossVars(
            *(
                {name: x for name, x in ((_PARTS, mine), (_OBJECTIVE, theirs)) if jax.tree.leaves(x)}
                for mine, theirs in zip(own, of_loss, strict=True)
            )
        )

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        first, second = (None, None) if key is None else jax.random.split(key)
        parts, made = make(params.get(_PARTS, {}), state.get(_PARTS, {}), context, first)
        out = objective.apply(params.get(_OBJECTIVE, {}), state.get(_OBJECTIVE, {}), extended(context, parts), second)
        new = {_PARTS: made, _OBJECTIVE: out.state}
        return out._replace(state={name: new[name] for name in state})

    return Objective(start, apply)
