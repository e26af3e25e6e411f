"""Lifelong learning from two teachers, an expert for the new task and the former self, and a few retained examples.

The student does not learn a new task from its labels, which would pull it far from what it knows, but from an expert
that has been trained on that task alone. Both halves of each task are in one `Distiller`, as in `lifelong`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import checks, teachers
from jaxkd.objectives.compose import Schedule, combine
from jaxkd.schemes.heads import (
    Heads,
    Length,
    Tasks,
    check_tasks,
    held_to_old,
    is_new,
    last_step,
    lengths_of,
    starts_of,
    table_of,
    task_at,
    task_heads,
    taught_new,
    told_by_labels,
)
from jaxkd.schemes.lifelong import former_self, is_start
from jaxkd.training import metrics as metrics_lib
from jaxkd.training.distill import OBJECTIVE, STUDENT, distill, strong
from jaxkd.types import (
    Array,
    Batch,
    Context,
    Distiller,
    LossVars,
    Mean,
    Metrics,
    Model,
    Outputs,
    PyTree,
    Teacher,
    TrainState,
    Variables,
)

__all__ = ["retrospection"]

OLD, EXPERT = "old", "expert"


def retrospection(
    student: Model,
    expert: Model,
    *,
    tasks: Tasks,
    steps: Length,
    expert_steps: int,
    optimizer: optax.GradientTransformation,
    expert_optimizer: optax.GradientTransformation | None = None,
    label_weight: float | Array | Schedule = 1.0,
    expert_weight: float | Array | Schedule = 1.0,
    old_weight: float | Array | Schedule = 1.0,
    expert_temperature: float | Array = 2.0,
    old_temperature: float | Array = 2.0,
    heads: Heads = task_heads,
    metrics: Callable[[Context], Metrics] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | None = None,
) -> Distiller:
    """Progressive distillation, retrospection: ``λ_e KL(expert ‖ p) + λ_o Σ_h KL(p_old^h ‖ p^h) + λ_c CE(retained)``.

    Hou, Pan, Loy, Wang & Lin, "Lifelong Learning via Progressive Distillation and Retrospection", ECCV 2018, section 3.
    A task after the first has two legs. In the first, an expert that begins afresh learns the new task alone, from its
    labels, and the student waits. In the second, the student as it was is taught by both: by the expert on the new
    task's classes for its examples, and by its former self on the old classes for all examples, those retained from
    earlier tasks (``jaxkd.data.Tasks(..., retained=...)``) and the new ones. Retained examples are told by their labels
    as well. The first task is plain training.

    The paper keeps to distillation, so λ_c = 0 is nearest to it; its soft targets are cross-entropies, which are
    larger by the teacher's entropy. There is no T² in either loss.

    Args:
      student: the model, with a logit for each class of all tasks.
      expert: another, of any architecture, also with a logit for each class; only the new task's are used.
      tasks: the class numbers of each task, disjoint.
      steps: how long each task lasts, both legs together, or one number for all; the last one goes on until training
        ends. The first may be 0, for a task that the student of the initial state knows.
      expert_steps: how many steps of a task are the expert's. It learns from the task's own examples only: to it,
        retained ones are masked.
      optimizer: any optax transformation, for the student; it begins anew with each task.
      expert_optimizer: another for the expert; the same by default. It begins anew as well.
      label_weight: λ_c, of the cross-entropy: of retained examples, and of all in the first task. The weights are
        numbers or optax schedules of the step from the start of training.
      expert_weight: λ_e.
      old_weight: λ_o.
      expert_temperature: of the expert's soft targets.
      old_temperature: of the old model's.
      heads: whose classes compete; the paper's is `task_heads`.
      metrics: what ``evaluate`` reports beside the terms.
      train_metrics: what ``step`` reports beside them, of the network that is trained.

    Returns:
      A `Distiller`. ``state.student`` is the student alone, ``state.teacher`` ``{"old", "expert"}``, both `Variables`.
      Metrics are the ``loss`` of whichever learns, the terms ``ce``, ``expert`` and ``kd`` of the student's leg,
      ``expert/loss`` and ``expert/...`` what is reported of the expert's, and the number of the task, ``task``; what a
      step did not compute has a count of 0. Evaluations are of the student, between two tasks as of the last step.

    Raises:
      ValueError: tasks or steps make no sense; and from ``init``: a model has fewer logits than there are classes.

    >>> import jaxkd
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 4)), lambda w, x: x @ w, inputs="x")
    >>> options = dict(tasks=[[0, 1], [2, 3]], steps=[1, 4], expert_steps=2, optimizer=optax.sgd(0.5))
    >>> kd = retrospection(linear, linear, **options)
    >>> batch = {"x": jnp.ones((1, 2)), "label": jnp.array([1])}
    >>> state, step = kd.init(jax.random.key(0), batch), jax.jit(kd.step)
    >>> for label in (1, 2, 2, 2, 2):
    ...     state, found = step(state, {"x": jnp.ones((1, 2)), "label": jnp.array([label])})
    >>> float(found["task"].sum), float(found["expert"].count), float(found["expert/loss"].count)
    (1.0, 1.0, 0.0)
    """
    tasks = check_tasks("retrospection", tasks)
    lengths = lengths_of("retrospection", steps, len(tasks))
    starts = starts_of("retrospection", lengths, len(tasks))
    if expert_steps < 1 or any(length <= expert_steps for length in lengths[1:]):
        raise ValueError(
            f"retrospection, expert_steps: expected at least 1, and fewer than each task after the first has, "
            f"{list(lengths[1:])}, so that some are left for the student; got {expert_steps}."
        )
    expert_optimizer = expert_optimizer or optimizer
    kd = distill(
        student,
        _both(former_self(student), expert),
        combine(
            ce=told_by_labels(tasks, lengths, heads=heads, retained=True, weight=label_weight),
            expert=taught_new(
                tasks, lengths, temperature=expert_temperature, teacher="teacher/expert/logits", weight=expert_weight
            ),
            kd=held_to_old(
                tasks,
                lengths,
                heads=heads,
                temperature=old_temperature,
                teacher="teacher/old/logits",
                weight=old_weight,
            ),
        ),
        optimizer=optimizer,
        metrics=metrics,
        train_metrics=train_metrics,
    )
    alone = distill(
        expert,
        teachers.none(),
        told_by_labels(tasks, lengths, heads=task_heads),
        optimizer=expert_optimizer,
        train_metrics=train_metrics,
    )

    def init(key: Array, batch: Batch) -> TrainState:
        state, one = kd.init(key, batch), alone.init(_expert_key(key, 0), batch)
        return state._replace(opt_state={**state.opt_state, EXPERT: one.opt_state})

    def begun(state: TrainState, batch: Batch) -> TrainState:
        """At a task's start: the student becomes its former self, the expert and both optimizers begin anew."""

        def anew() -> tuple[PyTree, PyTree]:
            fresh = alone.init(_expert_key(state.key, task_at(starts, state.step)), batch)
            own = {STUDENT: optimizer.init(state.student.params), OBJECTIVE: optimizer.init(state.loss.params)}
            return {OLD: state.student, EXPERT: fresh.student}, {**strong(own), EXPERT: fresh.opt_state}

        begins = is_start(starts, state.step)
        if begins is None:
            return state
        teacher, opt_state = jax.lax.cond(begins, anew, lambda: (state.teacher, state.opt_state))
        return state._replace(teacher=teacher, opt_state=opt_state)

    def of_student(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        own = {name: value for name, value in state.opt_state.items() if name != EXPERT}
        new, found = kd.step(state._replace(opt_state=own), batch)
        return new._replace(opt_state={**new.opt_state, EXPERT: state.opt_state[EXPERT]}), found

    def of_expert(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        own = state._replace(
            student=state.teacher[EXPERT], teacher={}, loss=LossVars({}, {}), opt_state=state.opt_state[EXPERT]
        )
        new, found = alone.step(own, _new_only(batch, task_at(starts, state.step)))
        return state._replace(
            teacher={**state.teacher, EXPERT: new.student},
            opt_state={**state.opt_state, EXPERT: new.opt_state},
            step=new.step,
        ), {"loss": found["loss"]} | {f"{EXPERT}/{k}": mean for k, mean in found.items() if not k.startswith(OBJECTIVE)}

    def _new_only(batch: Batch, task: Array) -> Batch:
        label, mask = batch["label"], checks.example_mask(batch)
        classes = jax.ShapeDtypeStruct((1, 1 + max(max(group) for group in tasks)), jnp.float32)
        new = is_new(table_of(tasks, classes), task, label)
        return {**batch, "mask": new if mask is None else mask & new}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        state = begun(state, batch)
        branches = [of_student, of_expert]
        names: dict[str, Any] = {}
        for branch in branches:
            names |= jax.eval_shape(branch, state, batch)[1]

        def complete(branch: Callable[..., Any]) -> Callable[..., Any]:
            def run(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
                new, found = branch(state, batch)
                absent = {name: Mean(*(jnp.zeros(x.shape, x.dtype) for x in mean)) for name, mean in names.items()}
                return new, {**absent, **found}

            return run

        task = task_at(starts, state.step)
        studies = (task > 0) & (state.step - jnp.asarray(starts)[task] < expert_steps)
        new, found = jax.lax.switch(studies.astype(jnp.int32), [complete(b) for b in branches], state, dict(batch))
        return new, _reported(found, task)

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        own = {name: value for name, value in state.opt_state.items() if name != EXPERT}
        found = kd.evaluate(state._replace(opt_state=own), batch)
        return _reported(found, task_at(starts, last_step(state.step)))

    return Distiller(init, step, evaluate)


def _both(old: Teacher, expert: Model) -> Teacher:
    """The former self and the expert, each one's outputs under its name."""

    def init(key: Array, batch: Batch, variables: Variables) -> PyTree:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(batch))
        return {OLD: old.init(key, batch, variables), EXPERT: strong(expert.init(key, zeros))}

    def apply(state: PyTree, batch: Batch, *, key: Array | None) -> Outputs:
        outputs = {OLD: old.apply(state[OLD], batch, key=key)}
        outputs[EXPERT] = expert.apply(state[EXPERT], batch, key=None, train=False)[0]
        return {f"{name}/{output}": x for name, found in outputs.items() for output, x in found.items()}

    def update(state: PyTree, variables: Variables, step: Any) -> PyTree:
        del variables, step
        return state

    return Teacher(init, apply, update)


def _expert_key(key: Array, task: Any) -> Array:
    """Of its own for the expert of each task."""
    return jax.random.fold_in(jax.random.fold_in(key, 1), task)


def _reported(found: Metrics, task: Array) -> Metrics:
    return {**found, "task": Mean(task.astype(jnp.float32), jnp.ones((), jnp.float32))}
