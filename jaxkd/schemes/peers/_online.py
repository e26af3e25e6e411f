"""One-way online distillation: a teacher that trains beside its student."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import optax

from jaxkd import metrics as metrics_lib
from jaxkd._core.train_state import optimizer_of_model, optimizer_of_objective
from jaxkd.distillers import distill, per_model
from jaxkd.objectives import combine, select
from jaxkd.teachers import none
from jaxkd.types import Array, Context, Distiller, Metrics, Model, Objective
from jaxkd.wrappers import joint

_STUDENT, _TEACHER = "student", "teacher"


def online(
    student: Model,
    teacher: Model,
    objective: Objective,
    *,
    teacher_objective: Objective,
    optimizer: optax.GradientTransformation,
    teacher_optimizer: optax.GradientTransformation | None = None,
    objective_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """One-way online distillation: both networks train in the same step.

    ``L = teacher_objective(teacher) + objective(student ← teacher)``. Gou et al., "Knowledge Distillation: A Survey",
    2021, section 3.2. The teacher learns from the data, the student from the data and the teacher. In each step the
    student sees the teacher's current outputs, in training mode. No gradient of the student's objective reaches the
    teacher.

    Args:
      student: model of the student, from an adapter.
      teacher: model of the teacher, from an adapter.
      objective: objective of the student, as for `jaxkd.distill`.
      teacher_objective: objective of the teacher, which reads the teacher's outputs as ``student/...``.
      optimizer: any optax transformation, for the student.
      teacher_optimizer: optax transformation of the teacher; by default the same, with a state of its own, unless it
        holds labels or masks of the student's parameters, which is an error.
      objective_optimizer: optax transformation of the objectives' parameters; by default that of the model.
      metrics: function of a `Context` with student and teacher, or several, as in offline distillation, reported by
        ``evaluate``.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms.

    Returns:
      A `Distiller`. ``wrappers.get_member(state.student, "student")`` are the variables of the student, ``"teacher"``
      those of the teacher. Metrics of the two objectives begin with ``student/`` and ``teacher/``.

    Raises:
      ValueError: from ``init``: an objective reads an entry that does not exist; the teacher has parameters that
        ``optimizer`` does not accept, and no ``teacher_optimizer``.

    >>> import jax, jax.numpy as jnp
    >>> import jaxkd
    >>> from jaxkd import losses
    >>> from jaxkd.wrappers import get_member
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    >>> kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits")
    >>> kd = online(linear, linear, kl, teacher_objective=ce, optimizer=optax.sgd(0.1))
    >>> batch = {"x": jnp.ones((4, 2)), "label": jnp.array([0, 0, 0, 1])}
    >>> state = kd.init(jax.random.key(0), batch)
    >>> for _ in range(2):
    ...     state, metrics = jax.jit(kd.step)(state, batch)
    >>> sorted(metrics)
    ['loss', 'student', 'student/weight', 'teacher', 'teacher/weight']
    >>> bool((get_member(state.student, "student").params != 0).any())
    True
    """
    both = {
        _STUDENT: select(objective, student=_STUDENT, teacher=_TEACHER),
        _TEACHER: select(teacher_objective, student=_TEACHER),
    }
    optimizers = {_STUDENT: optimizer, _TEACHER: optimizer_of_model(optimizer, teacher_optimizer, _TEACHER)}
    return distill(
        joint({_TEACHER: teacher, _STUDENT: student}, main=_STUDENT),
        none(),
        combine(**both),
        optimizer=per_model(optimizers),
        objective_optimizer=per_model(
            {name: optimizer_of_objective(one, objective_optimizer) for name, one in optimizers.items()}
        ),
        metrics=_offline(metrics),
        train_metrics=None if train_metrics is None else _offline(train_metrics),
    )


def _offline(
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]],
) -> Callable[[Context], Metrics]:
    """Adapts `metrics` to the joint model: splits its outputs by network."""

    def adapted(context: Context) -> Metrics:
        def outputs_of(name: str) -> dict[str, Array]:
            prefix = f"{name}/"
            return {path[len(prefix) :]: x for path, x in context.student.items() if path.startswith(prefix)}

        given = context._replace(student=outputs_of(_STUDENT), teacher=outputs_of(_TEACHER))
        return metrics_lib.report(metrics, given)

    return adapted
