"""An objective between two parts of one model: two peers of a group, an exit and the last layer, two views."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd.types import Array, Context, LossOut, LossVars, Objective, Outputs

__all__ = ["between"]


def between(objective: Objective, *, student: str = "", teacher: str | None = None) -> Objective:
    """An objective whose student, and whose teacher, are parts of the model that is trained.

    In ``between(objective, student="a", teacher="b")`` the paths ``student/logits`` and ``teacher/logits`` are those of
    the members a and b of `jaxkd.adapters.group`, of an exit of `jaxkd.adapters.with_exits`, or of a view of
    `jaxkd.adapters.views`. No gradient reaches what takes the teacher's place.

    Args:
      objective: any.
      student: whose outputs are the student's; ``""`` for the model's own.
      teacher: whose outputs are the teacher's, ``""`` for the model's own; None leaves the teacher as it is.

    Returns:
      An `Objective` that owns what the given one owns.

    Raises:
      ValueError: when it is used: the model has no outputs of that name; those that it has are listed.

    >>> import jax.numpy as jnp
    >>> import jaxkd
    >>> kl = jaxkd.term(jaxkd.losses.logit_mse, "student/logits", "teacher/logits")
    >>> outputs = {"a/logits": jnp.zeros((1, 2)), "b/logits": jnp.ones((1, 2))}
    >>> between(kl, student="a", teacher="b").apply({}, {}, Context(outputs, {}, {}, 0), None).value
    Array(1., dtype=float32)
    """

    def seen(context: Context) -> Context:
        if teacher is not None:
            context = context._replace(teacher=_held(_part(context.student, teacher)))
        return context._replace(student=_part(context.student, student))

    def init(key: Array, context: Context) -> LossVars:
        return objective.init(key, seen(context))

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        return objective.apply(params, state, seen(context), key)

    return Objective(init, apply)


def _part(outputs: Outputs, name: str) -> Outputs:
    """The outputs under a name, without it."""
    if not name:
        return outputs
    found = {path[len(name) + 1 :]: x for path, x in outputs.items() if path.startswith(f"{name}/")}
    if not found:
        names = sorted({path.rpartition("/")[0] for path in outputs} - {""})
        raise ValueError(
            f"between: expected outputs of {name!r}, and the model has {', '.join(map(repr, names)) or 'no parts'}. "
            "Parts come from adapters.group, adapters.copies, adapters.with_exits and adapters.views."
        )
    return found


def _held(outputs: Outputs) -> Outputs:
    """Without gradients; a shape, which an objective is initialised by, has none."""
    return {name: x if isinstance(x, jax.ShapeDtypeStruct) else jax.lax.stop_gradient(x) for name, x in outputs.items()}
