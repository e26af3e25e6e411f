"""An objective between two parts of one model: peers, exits or views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jaxkd._core import checks
from jaxkd.types import REPLICAS, Array, Context, Objective, ObjectiveOut, ObjectiveVars, Outputs, PyTree


def select(objective: Objective, *, student: str = "", teacher: str | None = None) -> Objective:
    """Applies an objective to parts of the trained model as student and as teacher.

    In ``select(objective, student="a", teacher="b")`` the paths ``student/logits`` and ``teacher/logits`` refer to the
    outputs of the parts a and b: members of `jaxkd.wrappers.joint`, exits of `jaxkd.wrappers.with_exits`, or views of
    `jaxkd.wrappers.views`. Their parameters are ``student_params/...`` and ``teacher_params/...``. No gradient reaches
    the part that serves as the teacher.

    Args:
      objective: the objective to apply.
      student: name of the part that serves as the student; ``""`` for the model's own outputs.
      teacher: name of the part that serves as the teacher, ``""`` for the model's own outputs; None keeps the
        distillation's teacher.

    Returns:
      An `Objective` with the parameters, the state and the metrics of the given one.

    Raises:
      ValueError: from ``init``: the model has no part of that name; the message lists its parts.

    >>> import jax.numpy as jnp
    >>> import jaxkd
    >>> mse = jaxkd.term(jaxkd.losses.logit_mse, "student/logits", "teacher/logits")
    >>> outputs = {"a/logits": jnp.zeros((1, 2)), "b/logits": jnp.ones((1, 2))}
    >>> select(mse, student="a", teacher="b").apply({}, {}, Context(outputs, {}, {}, 0), None).value
    Array(1., dtype=float32)
    """
    checks.contract("select, objective", objective, Objective)

    def select(context: Context) -> Context:
        if teacher is not None:
            params = _stop_gradient(_params(context.student_params, teacher))
            outputs = _stop_gradient(_part(context.student, teacher))
            context = context._replace(teacher=outputs, teacher_params=params)
        params = _params(context.student_params, student)
        return context._replace(student=_part(context.student, student), student_params=params)

    def init(key: Array, context: Context) -> ObjectiveVars:
        return objective.init(key, select(context))

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        return objective.apply(params, state, select(context), key)

    return Objective(init, apply)


def _part(outputs: Outputs, name: str) -> Outputs:
    """Returns the outputs under ``name/``, by the rest of their path."""
    if not name:
        return outputs
    part = {path[len(name) + 1 :]: x for path, x in outputs.items() if path.startswith(f"{name}/")}
    if not part:
        names = sorted({path.rpartition("/")[0] for path in outputs} - {""})
        raise ValueError(
            f"select: expected outputs of {name!r}, and the model has {', '.join(map(repr, names)) or 'no parts'}. "
            "Parts come from wrappers.joint, wrappers.replicate, wrappers.with_exits and wrappers.views."
        )
    return part


def _params(params: PyTree, name: str) -> PyTree:
    """Returns the parameters of the part of that name.

    Views, a model's own outputs, and the ensemble of replicas have those of the model.
    """
    part, _, rest = name.partition("/")
    if not part or not isinstance(params, Mapping):
        return params
    if params.keys() == {REPLICAS} and part.isdigit():
        return _params(jax.tree.map(lambda x: _row(x, int(part)), params[REPLICAS]), rest)
    return _params(params[part], rest) if part in params else params


def _row(x: Any, i: int) -> Any:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x[i]


def _stop_gradient(tree: PyTree) -> Any:
    """Stops gradients; the shapes that an objective is initialized with pass."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.ShapeDtypeStruct) else jax.lax.stop_gradient(x), tree)
