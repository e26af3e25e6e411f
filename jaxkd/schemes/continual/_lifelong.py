"""Continual learning: the student before a task teaches it the old classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import metrics as metrics_lib
from jaxkd._core.tasks import Tasks, TaskSteps, check_tasks, last_step, task_at, task_lengths, task_starts
from jaxkd._core.train_state import optimizer_of_objective, strongly_typed
from jaxkd.distillers import distill
from jaxkd.objectives import combine
from jaxkd.objectives.continual import Heads, old_class_kd, per_task_softmax, task_cross_entropy
from jaxkd.types import (
    OBJECTIVE,
    STUDENT,
    Array,
    Batch,
    Context,
    Distiller,
    Mean,
    Metrics,
    Model,
    Objective,
    Outputs,
    PyTree,
    Schedule,
    Teacher,
    TrainState,
    Variables,
)


def learning_without_forgetting(
    student: Model,
    *,
    tasks: Tasks,
    steps: TaskSteps,
    optimizer: optax.GradientTransformation,
    old_weight: float | Array | Schedule = 1.0,
    temperature: float | Array = 2.0,
    softmax: Heads = per_task_softmax,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """``CE(new labels) + λ_o Σ_h KL(p_old^h ‖ p^h)``, with T = 2 on the old classes.

    Also known as: LwF (learning without forgetting).

    Li & Hoiem, "Learning without Forgetting", TPAMI 2018 (arXiv 1606.09282, 2017), equations 1 to 4. The old model's
    predictions for the new task's images replace the data of old tasks. The first task is plain training.

    Three things differ from the paper. The student has the logits of all tasks from the start; those of later tasks
    enter no loss, and ``softmax`` defines which logits share a softmax (the default is the paper's). The paper first
    trains only the new head; here all parameters train from the task's first step. Weight decay is that of the
    optimizer.

    A network with a last layer for each task concatenates their logits, and ``tasks`` lists the classes of each.

    Args:
      student: model with a logit for each class of all tasks.
      tasks: class numbers of each task, disjoint, such as ``[[0, 1], [2, 3]]``.
      steps: number of steps of each task, or one number for all; the last task lasts until training ends. The first
        number may be 0, for a pretrained initial student, which is then the teacher of the second task.
      optimizer: any optax transformation; its state and its schedule begin anew with each task.
      old_weight: λ_o, 1 in the paper; a number or an optax schedule of the step from the start of training. It contains
        no T²: `jaxkd.losses.soft_target_kl` with weight w corresponds to λ_o = T² w.
      temperature: T.
      softmax: a function of `jaxkd.objectives.continual`, such as `per_task_softmax`.
      metrics: function of a `Context`, or several, reported by ``evaluate`` beside the terms, such as
        `jaxkd.metrics.per_task`.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms.

    Returns:
      A `Distiller` as from `lifelong`, with the terms ``ce`` and ``kd``.

    Raises:
      ValueError: tasks or steps are invalid; from ``init``: the student has fewer logits than there are classes.

    >>> import jaxkd
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 4)), lambda w, x: x @ w, inputs="x")
    >>> kd = learning_without_forgetting(linear, tasks=[[0, 1], [2, 3]], steps=2, optimizer=optax.sgd(0.5))
    >>> state = kd.init(jax.random.key(0), {"x": jnp.ones((1, 2)), "label": jnp.array([1])})
    >>> for label in (1, 1, 2, 2):
    ...     state, metrics = jax.jit(kd.step)(state, {"x": jnp.ones((1, 2)), "label": jnp.array([label])})
    >>> float(metrics["task"].sum), bool((state.teacher.params[:, 2:] == 0).all())  # that of the first task
    (1.0, True)
    """
    tasks = check_tasks("learning_without_forgetting", tasks)
    lengths = task_lengths("learning_without_forgetting", steps, len(tasks))
    objective = combine(
        ce=task_cross_entropy(tasks, steps, softmax=softmax),
        kd=old_class_kd(tasks, steps, softmax=softmax, temperature=temperature, weight=old_weight),
    )
    return lifelong(
        student, objective, steps=lengths, optimizer=optimizer, metrics=metrics, train_metrics=train_metrics
    )


def lifelong(
    student: Model,
    objective: Objective,
    *,
    steps: Sequence[int],
    optimizer: optax.GradientTransformation,
    objective_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """Sequence of tasks; the student before each task becomes its teacher.

    `learning_without_forgetting` is this scheme with two terms. An objective may have more, for example on features:
    ``combine(ce=task_cross_entropy(...), kd=old_class_kd(...), f=objectives.hint("student/f", "teacher/f"))``. At the
    start of each task the student's variables are copied to the teacher, and the optimizer state is initialized anew.
    Both depend on the step only, so that an interrupted run resumes in its task. `jaxkd.data.Tasks` yields the matching
    batches.

    Args:
      student: model of the student.
      objective: objective of all tasks; its schedules count the steps from the start of training.
      steps: number of steps of each task. The last task lasts until training ends; the first number may be 0.
      optimizer: any optax transformation; its state begins anew with each task.
      objective_optimizer: optax transformation of the objective's parameters; the same by default.
      metrics: function of a `Context`, or several, reported by ``evaluate`` beside the objective's terms.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms.

    Returns:
      A `Distiller` whose ``state.teacher`` are the earlier student's `Variables`, in the first task the initial
      student's. It also reports the number of the task, ``task``. Between two tasks, an evaluation uses the earlier one
      and its teacher.

    Raises:
      ValueError: there are no tasks, or a number of steps is not positive.

    >>> import jaxkd
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 4)), lambda w, x: x @ w, inputs="x")
    >>> ce = jaxkd.term(jaxkd.losses.cross_entropy, "student/logits", "batch/label")
    >>> kd = lifelong(linear, ce, steps=[5, 5], optimizer=optax.sgd(0.1))
    >>> batch = {"x": jnp.ones((1, 2)), "label": jnp.array([1])}
    >>> state, metrics = kd.step(kd.init(jax.random.key(0), batch), batch)
    >>> int(metrics["task"].sum)
    0
    """
    if isinstance(steps, int):
        raise ValueError(
            f"lifelong, steps: expected a number of steps for each task, such as [{steps}, {steps}], got {steps}."
        )
    starts = task_starts("lifelong", steps, len(steps))
    kd = distill(
        student,
        former_self(student),
        objective,
        optimizer=optimizer,
        objective_optimizer=objective_optimizer,
        metrics=metrics,
        train_metrics=train_metrics,
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def anew() -> tuple[Variables, PyTree]:
            made = {
                STUDENT: optimizer.init(state.student.params),
                OBJECTIVE: optimizer_of_objective(optimizer, objective_optimizer).init(state.objective.params),
            }
            return state.student, {**state.opt_state, **strongly_typed(made)}

        new, metrics = kd.step(begin_task(starts, state, anew), batch)
        return new, with_task(metrics, task_at(starts, state.step))

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        return with_task(kd.evaluate(state, batch), task_at(starts, last_step(state.step)))

    return Distiller(kd.init, step, evaluate)


def former_self(student: Model) -> Teacher:
    """Returns a teacher whose state is a copy of the student's variables."""

    def init(key: Array | None, batch: Batch, variables: Variables) -> PyTree:
        del key, batch
        return jax.tree.map(jnp.copy, variables)

    def apply(state: PyTree, batch: Batch, *, key: Array | None) -> Outputs:
        del key
        return student.apply(state, batch, key=None, train=False)[0]

    def update(state: PyTree, variables: Variables, step: Any) -> PyTree:
        del variables, step
        return state

    return Teacher(init, apply, update)


def begin_task(starts: np.ndarray, state: TrainState, anew: Callable[[], tuple[PyTree, PyTree]]) -> TrainState:
    """Replaces teacher and optimizer state by those of ``anew`` where a task begins."""
    if len(starts) == 1:
        return state
    begins = jnp.any(jnp.asarray(starts[1:]) == state.step)
    teacher, opt_state = jax.lax.cond(begins, anew, lambda: (state.teacher, state.opt_state))
    return state._replace(teacher=teacher, opt_state=opt_state)


def with_task(metrics: Metrics, task: Array) -> Metrics:
    """Adds the number of the task to the metrics."""
    return {**metrics, "task": Mean(task.astype(jnp.float32), jnp.ones((), jnp.float32))}
