"""A teacher that is trained beside its student, in the same step."""

from __future__ import annotations

from collections.abc import Callable

import optax

from jaxkd.adapters.group import group
from jaxkd.objectives.between import between
from jaxkd.objectives.compose import combine
from jaxkd.teachers.none import none
from jaxkd.training import metrics as metrics_lib
from jaxkd.training.distill import distill
from jaxkd.training.per_member import per_member
from jaxkd.types import Array, Context, Distiller, Metrics, Model, Objective

__all__ = ["online"]

_STUDENT, _TEACHER = "student", "teacher"


def online(
    teacher: Model,
    student: Model,
    objective: Objective,
    *,
    teacher_objective: Objective,
    optimizer: optax.GradientTransformation,
    teacher_optimizer: optax.GradientTransformation | None = None,
    loss_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | None = None,
) -> Distiller:
    """One-way online distillation: the teacher learns from the data, the student from the data and the teacher.

    ``L = teacher_objective(teacher) + objective(student ← teacher)``. Gou et al., "Knowledge Distillation: A Survey",
    2021, section 3.2. The student is taught by the teacher as it is at each step, in training mode, from the first step
    on. No gradient of its loss reaches the teacher, which learns what it would learn alone.

    Args:
      teacher: the teacher's model, from an adapter.
      student: the student's.
      objective: the student's, as for `jaxkd.distill`: it reads ``student/...``, ``teacher/...`` and ``batch/...``.
      teacher_objective: the teacher's own; its outputs are ``student/...`` there, as in training it alone.
      optimizer: for the student.
      teacher_optimizer: for the teacher; by default the same, with a state of its own.
      loss_optimizer: for what the objectives learn, each by itself; by default the optimizer of the model.
      metrics: what ``evaluate`` reports: of a `Context` with student and teacher, as in offline distillation.
      train_metrics: what ``step`` reports beside the terms.

    Returns:
      A `Distiller`. ``adapters.member(state.student, "student")`` is the student, ``"teacher"`` the teacher. The
      metrics of the objectives are those under ``student/...`` and ``teacher/...``.

    Raises:
      ValueError: from ``init``: an objective asks for something that there is not.

    >>> import jax, jax.numpy as jnp
    >>> import jaxkd
    >>> from jaxkd import losses
    >>> from jaxkd.adapters.group import member
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    >>> kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits")
    >>> kd = online(linear, linear, kl, teacher_objective=ce, optimizer=optax.sgd(0.1))
    >>> batch = {"x": jnp.ones((4, 2)), "label": jnp.array([0, 0, 0, 1])}
    >>> state = kd.init(jax.random.key(0), batch)
    >>> for _ in range(2):
    ...     state, found = jax.jit(kd.step)(state, batch)
    >>> sorted(found)
    ['loss', 'student', 'student/weight', 'teacher', 'teacher/weight']
    >>> bool((member(state.student, "student").params != 0).any())
    True
    """
    both = {
        _STUDENT: between(objective, student=_STUDENT, teacher=_TEACHER),
        _TEACHER: between(teacher_objective, student=_TEACHER),
    }
    optimizers = {_STUDENT: optimizer, _TEACHER: teacher_optimizer or optimizer}
    return distill(
        group({_TEACHER: teacher, _STUDENT: student}, main=_STUDENT),
        none(),
        combine(**both),
        optimizer=per_member(optimizers),
        loss_optimizer=per_member(loss_optimizer or optimizers),
        metrics=_offline(metrics),
        train_metrics=None if train_metrics is None else _offline(train_metrics),
    )


def _offline(metrics: Callable[[Context], Metrics]) -> Callable[[Context], Metrics]:
    """Metrics of a context in which student and teacher stand where they do in offline distillation."""

    def of(context: Context) -> Metrics:
        def part(name: str) -> dict[str, Array]:
            prefix = f"{name}/"
            return {path[len(prefix) :]: x for path, x in context.student.items() if path.startswith(prefix)}

        return metrics(context._replace(student=part(_STUDENT), teacher=part(_TEACHER)))

    return of
