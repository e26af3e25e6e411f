"""Lifelong distillation: one task after the other, and what the student was before each is the teacher of the old ones.

A student that only trains on the newest task forgets the others. Here, when a task begins, the student so far becomes
the teacher, and the optimizer begins anew. That is a function of the step, so the whole sequence is one `Distiller`:
one state, one compiled step, the same placement, loop and checkpoints, and an interrupted run goes on in its task.
`jaxkd.data.Tasks` gives the batches that go with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd.objectives.compose import Schedule, combine
from jaxkd.schemes.heads import (
    Heads,
    Length,
    Tasks,
    check_tasks,
    held_to_old,
    last_step,
    lengths_of,
    starts_of,
    task_at,
    task_heads,
    told_by_labels,
)
from jaxkd.training import metrics as metrics_lib
from jaxkd.training.distill import OBJECTIVE, STUDENT, distill, strong
from jaxkd.types import (
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
    Teacher,
    TrainState,
    Variables,
)

__all__ = ["learning_without_forgetting", "lifelong"]


def learning_without_forgetting(
    student: Model,
    *,
    tasks: Tasks,
    steps: Length,
    optimizer: optax.GradientTransformation,
    old_weight: float | Array | Schedule = 1.0,
    temperature: float | Array = 2.0,
    heads: Heads = task_heads,
    metrics: Callable[[Context], Metrics] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | None = None,
) -> Distiller:
    """Learning without forgetting: ``CE(new labels) + λ_o Σ_h KL(p_old^h ‖ p^h)``, at T = 2 over the old classes.

    Li & Hoiem, "Learning without Forgetting", TPAMI 2018 (arXiv 1606.09282, 2017), equations 1 to 4. The old task's
    data are gone: what the old model says of the new task's images stands for them. The first task is plain training.

    Three things differ from the paper. The student has the logits of all tasks from the start, those of later ones
    without a part in any loss; `heads` decides which share a softmax, and its default is the paper's. The paper first
    trains the new head alone; here everything trains from the task's beginning. And its weight decay is whatever the
    optimizer has.

    Networks with a layer of their own for each task are the same thing: give them as one module that concatenates its
    heads' logits, and each head its classes in ``tasks``.

    Args:
      student: the model, with a logit for each class of all tasks.
      tasks: the class numbers of each task, disjoint, such as ``[[0, 1], [2, 3]]``.
      steps: how long each task lasts, or one number for all; the last one goes on until training ends. The first may
        be 0: then the student of the initial state, such as a pretrained one, is the teacher of that task.
      optimizer: any optax transformation; it begins anew, its schedule too, with each task.
      old_weight: λ_o, the paper's 1, a number or an optax schedule of the step from the start of training. There is
        no T² in it: for losses scaled as `jaxkd.losses.soft_target_kl` give T²λ_o.
      temperature: T.
      heads: `task_heads`, `two_heads`, `single_head`, or a function of one's own.
      metrics: what ``evaluate`` reports beside the two terms; `jaxkd.training.forgetting.per_task` for each task.
      train_metrics: what ``step`` reports beside them.

    Returns:
      A `Distiller` as of `lifelong`, with the terms ``ce`` and ``kd``.

    Raises:
      ValueError: tasks or steps make no sense; and from ``init``: the student has fewer logits than there are classes.

    >>> import jaxkd
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 4)), lambda w, x: x @ w, inputs="x")
    >>> kd = learning_without_forgetting(linear, tasks=[[0, 1], [2, 3]], steps=2, optimizer=optax.sgd(0.5))
    >>> state = kd.init(jax.random.key(0), {"x": jnp.ones((1, 2)), "label": jnp.array([1])})
    >>> for label in (1, 1, 2, 2):
    ...     state, found = jax.jit(kd.step)(state, {"x": jnp.ones((1, 2)), "label": jnp.array([label])})
    >>> float(found["task"].sum), bool((state.teacher.params[:, 2:] == 0).all())  # the student after the first task
    (1.0, True)
    """
    tasks = check_tasks("learning_without_forgetting", tasks)
    lengths = lengths_of("learning_without_forgetting", steps, len(tasks))
    objective = combine(
        ce=told_by_labels(tasks, steps, heads=heads),
        kd=held_to_old(tasks, steps, heads=heads, temperature=temperature, weight=old_weight),
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
    loss_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | None = None,
) -> Distiller:
    """A student that its own former self teaches: at the start of each task it becomes the teacher as it is.

    `learning_without_forgetting` is this with two terms; others, of features for instance, can stand beside them:
    ``combine(ce=told_by_labels(...), kd=held_to_old(...), f=objectives.hint("student/f", "teacher/f"))``. In the first
    task the teacher is the initial student.

    Args:
      student: the model.
      objective: what is minimised, in all tasks; schedules in it count the steps from the start of training.
      steps: how long each task lasts. The last one goes on until training ends; the first may be 0.
      optimizer: any optax transformation; it begins anew with each task.
      loss_optimizer: another for what the objective learns; the same by default. It begins anew as well.
      metrics: what ``evaluate`` reports beside the objective's terms.
      train_metrics: what ``step`` reports beside them.

    Returns:
      A `Distiller` whose teacher is the old student's `Variables`. Its metrics include the number of the task,
      ``task``. An evaluation between two tasks is of the one that made the last step, with its teacher.

    Raises:
      ValueError: there are no tasks, or one has no steps.

    >>> import jaxkd
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 4)), lambda w, x: x @ w, inputs="x")
    >>> ce = jaxkd.term(jaxkd.losses.cross_entropy, "student/logits", "batch/label")
    >>> kd = lifelong(linear, ce, steps=[5, 5], optimizer=optax.sgd(0.1))
    >>> batch = {"x": jnp.ones((1, 2)), "label": jnp.array([1])}
    >>> state, found = kd.step(kd.init(jax.random.key(0), batch), batch)
    >>> int(found["task"].sum)
    0
    """
    if isinstance(steps, int):
        raise ValueError(f"lifelong, steps: expected a number of steps for each task, such as [{steps}, {steps}].")
    starts = starts_of("lifelong", steps, len(steps))
    kd = distill(
        student,
        former_self(student),
        objective,
        optimizer=optimizer,
        loss_optimizer=loss_optimizer,
        metrics=metrics,
        train_metrics=train_metrics,
    )

    def begun(state: TrainState) -> TrainState:
        def anew() -> tuple[Variables, PyTree]:
            made = {
                STUDENT: optimizer.init(state.student.params),
                OBJECTIVE: (loss_optimizer or optimizer).init(state.loss.params),
            }
            return state.student, {**state.opt_state, **strong(made)}

        begins = is_start(starts, state.step)
        if begins is None:
            return state
        teacher, opt_state = jax.lax.cond(begins, anew, lambda: (state.teacher, state.opt_state))
        return state._replace(teacher=teacher, opt_state=opt_state)

    def reported(found: Metrics, step: Any) -> Metrics:
        return {**found, "task": Mean(task_at(starts, step).astype(jnp.float32), jnp.ones((), jnp.float32))}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new, found = kd.step(begun(state), batch)
        return new, reported(found, state.step)

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        return reported(kd.evaluate(state, batch), last_step(state.step))

    return Distiller(kd.init, step, evaluate)


def former_self(student: Model) -> Teacher:
    """A teacher that is the student of another time, in inference mode; the scheme says of which."""

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


def is_start(starts: np.ndarray, step: Any) -> Array | None:
    """Whether a task after the first begins at a step; None if there is no other."""
    return None if len(starts) == 1 else jnp.any(jnp.asarray(starts[1:]) == step)
