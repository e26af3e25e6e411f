"""Objectives on outputs derived from the student's, such as an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxkd._core import checks
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars

_PARTS, _OBJECTIVE = "parts", "objective"


def with_derived_outputs(
    init: Callable[[Array, Context], ObjectiveVars],
    make: Callable[[Any, Any, Context, Array | None], tuple[Mapping[str, Array], Any]],
    objective: Objective,
) -> Objective:
    """Applies an objective to the student's outputs extended by derived ones.

    With ``{"ensemble/logits": ...}`` derived from the outputs of several models, ``select(..., student="a",
    teacher="ensemble")`` distills the ensemble into the model a.

    Args:
      init: ``(key, context of shapes) -> ObjectiveVars``, parameters and state of `make`.
      make: ``(params, state, context, key) -> (outputs, new state)``, the derived outputs by name; the key is None in
        evaluation. Gradients flow through the derived outputs.
      objective: objective on the extended outputs; it may have parameters and state of its own.

    Returns:
      An `Objective` with parameters and state ``{"parts": ..., "objective": ...}``, each only where it is not empty.

    Raises:
      TypeError: `objective` is not an objective.
      ValueError: from ``init``: the model has an output of a derived one's name.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> from jaxkd.objectives import lookup, term
    >>> doubled = with_derived_outputs(
    ...     lambda key, context: ObjectiveVars(),
    ...     lambda p, s, c, key: ({"double/logits": 2 * lookup(c, "student/logits")}, s),
    ...     term(losses.logit_mse, "student/logits", "student/double/logits"),
    ... )
    >>> doubled.apply({}, {}, Context({"logits": jnp.full((1, 2), 3.0)}, {}, {}, 0), None).value
    Array(9., dtype=float32)
    """
    checks.contract("with_derived_outputs, objective", objective, Objective)

    def extend(context: Context, parts: Mapping[str, Array]) -> Context:
        if twice := sorted(context.student.keys() & parts.keys()):
            raise ValueError(
                f"with_derived_outputs: expected names that the model's outputs do not have, got {', '.join(twice)}. "
                "Rename the model's, or the derived ones."
            )
        return context._replace(student={**context.student, **parts})

    def init_both(key: Array, context: Context) -> ObjectiveVars:
        first, second = jax.random.split(key)
        own = init(first, context)
        local = context._replace(axis_name=None)  # no axis is mapped at initialization
        shapes = jax.eval_shape(lambda p, s, c: dict(make(p, s, c, None)[0]), own.params, own.state, local)
        inner = objective.init(second, extend(context, shapes))
        both = ({_PARTS: outer, _OBJECTIVE: nested} for outer, nested in zip(own, inner, strict=True))
        return ObjectiveVars(*({name: x for name, x in trees.items() if jax.tree.leaves(x)} for trees in both))

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        first, second = (None, None) if key is None else jax.random.split(key)
        parts, new = make(params.get(_PARTS, {}), state.get(_PARTS, {}), context, first)
        out = objective.apply(params.get(_OBJECTIVE, {}), state.get(_OBJECTIVE, {}), extend(context, parts), second)
        states = {_PARTS: new, _OBJECTIVE: out.state}
        return out._replace(state={name: states[name] for name in state})

    return Objective(init_both, apply)
