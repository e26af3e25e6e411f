"""Continual learning with two teachers: an expert and the earlier student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import metrics as metrics_lib
from jaxkd import teachers
from jaxkd._core import train_state
from jaxkd._core.tasks import (
    Tasks,
    TaskSteps,
    check_tasks,
    class_table,
    is_new,
    last_step,
    task_at,
    task_lengths,
    task_starts,
)
from jaxkd._core.train_state import optimizer_of_model, optimizer_of_objective, strongly_typed
from jaxkd.distillers import distill
from jaxkd.objectives import combine
from jaxkd.objectives.continual import Heads, new_class_kd, old_class_kd, per_task_softmax, task_cross_entropy
from jaxkd.schemes.continual._lifelong import begin_task, former_self, with_task
from jaxkd.schemes.phases._switch import select
from jaxkd.types import (
    OBJECTIVE,
    STUDENT,
    Array,
    Batch,
    Context,
    Distiller,
    Metrics,
    Model,
    ObjectiveVars,
    Outputs,
    PyTree,
    Schedule,
    Teacher,
    TrainState,
    Variables,
)

OLD, EXPERT = "old", "expert"


def retrospection(
    student: Model,
    expert: Model,
    *,
    tasks: Tasks,
    steps: TaskSteps,
    expert_steps: int,
    optimizer: optax.GradientTransformation,
    expert_optimizer: optax.GradientTransformation | None = None,
    label_weight: float | Array | Schedule = 1.0,
    expert_weight: float | Array | Schedule = 1.0,
    old_weight: float | Array | Schedule = 1.0,
    expert_temperature: float | Array = 2.0,
    old_temperature: float | Array = 2.0,
    softmax: Heads = per_task_softmax,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """``λ_e KL(expert ‖ p) + λ_o Σ_h KL(p_old^h ‖ p^h) + λ_c CE(retained)``.

    Also known as: progressive distillation and retrospection.

    Hou, Pan, Loy, Wang & Lin, "Lifelong Learning via Progressive Distillation and Retrospection", ECCV 2018, section 3.
    Each task after the first has two phases. First, a freshly initialized expert learns the new task from its labels,
    and the student is not trained. Then the student has two teachers: the expert, on the new task's classes and
    examples; and the student before the task, on the old classes and all examples, including those retained from
    earlier tasks (``jaxkd.data.Tasks(..., retained=...)``), which also train by their labels. The first task is plain
    training.

    The paper has only distillation terms, so λ_c = 0 is closest to it. Its soft targets are cross-entropies, which are
    larger by the teacher's entropy. Neither loss is multiplied by T².

    Args:
      student: model with a logit for each class of all tasks.
      expert: model of any architecture, also with a logit for each class; only those of the new task are used.
      tasks: class numbers of each task, disjoint.
      steps: number of steps of each task, both phases together, or one number for all; the last task lasts until
        training ends. The first number may be 0, for a pretrained student.
      expert_steps: number of steps of a task in which the expert trains. Retained examples are masked for it.
      optimizer: any optax transformation, for the student; its state begins anew with each task.
      expert_optimizer: optax transformation of the expert; the same by default, unless it holds labels or masks of the
        student's parameters, which is an error.
      label_weight: λ_c of the cross-entropy, which is over retained examples, and in the first task over all. The
        weights are numbers or optax schedules of the step from the start of training.
      expert_weight: λ_e.
      old_weight: λ_o.
      expert_temperature: temperature of the expert's soft targets.
      old_temperature: temperature of the earlier student's soft targets.
      softmax: function that defines the heads; `per_task_softmax` in the paper.
      metrics: function of a `Context`, or several, reported by ``evaluate`` beside the terms.
      train_metrics: function of a `Context`, or several, reported by ``step`` beside the terms, for the network that
        trains.

    Returns:
      A `Distiller`. ``state.teacher`` are the variables of ``{"old", "expert"}``. Metrics are the ``loss`` of the
      network that trains, the student's terms ``ce``, ``expert`` and ``kd``, the expert's ``expert/loss`` and
      ``expert/...``, and the number of the task, ``task``. Metrics of the network that does not train have a count of
      0. ``evaluate`` evaluates the student; between two tasks it uses the earlier one.

    Raises:
      ValueError: tasks or steps are invalid; from ``init``: a model has fewer logits than there are classes.

    >>> import jaxkd
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 4)), lambda w, x: x @ w, inputs="x")
    >>> options = dict(tasks=[[0, 1], [2, 3]], steps=[1, 4], expert_steps=2, optimizer=optax.sgd(0.5))
    >>> kd = retrospection(linear, linear, **options)
    >>> batch = {"x": jnp.ones((1, 2)), "label": jnp.array([1])}
    >>> state, step = kd.init(jax.random.key(0), batch), jax.jit(kd.step)
    >>> for label in (1, 2, 2, 2, 2):
    ...     state, metrics = step(state, {"x": jnp.ones((1, 2)), "label": jnp.array([label])})
    >>> float(metrics["task"].sum), float(metrics["expert"].count), float(metrics["expert/loss"].count)
    (1.0, 1.0, 0.0)
    """
    tasks = check_tasks("retrospection", tasks)
    lengths = task_lengths("retrospection", steps, len(tasks))
    starts = task_starts("retrospection", lengths, len(tasks))
    if expert_steps < 1 or any(length <= expert_steps for length in lengths[1:]):
        raise ValueError(
            f"retrospection, expert_steps: expected at least 1, and fewer than each task after the first has, "
            f"{list(lengths[1:])}, so that some remain for the student; got {expert_steps}."
        )
    of_expert: dict[str, Any] = {
        "teacher": "teacher/expert/logits",
        "temperature": expert_temperature,
        "weight": expert_weight,
    }
    of_old: dict[str, Any] = {"teacher": "teacher/old/logits", "temperature": old_temperature, "weight": old_weight}
    objective = combine(
        ce=task_cross_entropy(tasks, lengths, softmax=softmax, retained=True, weight=label_weight),
        expert=new_class_kd(tasks, lengths, **of_expert),
        kd=old_class_kd(tasks, lengths, softmax=softmax, **of_old),
    )
    teacher = _both(former_self(student), expert)
    kd = distill(student, teacher, objective, optimizer=optimizer, metrics=metrics, train_metrics=train_metrics)
    alone = distill(
        expert,
        teachers.none(),
        task_cross_entropy(tasks, lengths, softmax=per_task_softmax),
        optimizer=optimizer_of_model(optimizer, expert_optimizer, EXPERT),
        train_metrics=train_metrics,
    )

    def init(key: Array, batch: Batch) -> TrainState:
        state, one = kd.init(key, batch), alone.init(_expert_key(key, 0), batch)
        return train_state.put(state, EXPERT, one.opt_state, "retrospection")

    def begun(state: TrainState, batch: Batch) -> TrainState:
        def anew() -> tuple[PyTree, PyTree]:
            fresh = alone.init(_expert_key(state.key, task_at(starts, state.step)), batch)
            own = {
                STUDENT: optimizer.init(state.student.params),
                OBJECTIVE: optimizer_of_objective(optimizer, None).init(state.objective.params),
            }
            return {OLD: state.student, EXPERT: fresh.student}, {**strongly_typed(own), EXPERT: fresh.opt_state}

        return begin_task(starts, state, anew)

    def step_of_student(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        own, expert_state = train_state.take(state, EXPERT, "retrospection")
        new, metrics = kd.step(own, batch)
        return train_state.put(new, EXPERT, expert_state, "retrospection"), metrics

    def step_of_expert(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        own = state._replace(
            student=state.teacher[EXPERT], teacher={}, objective=ObjectiveVars(), opt_state=state.opt_state[EXPERT]
        )
        new, metrics = alone.step(own, _new_only(batch, task_at(starts, state.step)))
        named = {f"{EXPERT}/{name}": mean for name, mean in metrics.items() if not name.startswith(OBJECTIVE)}
        teacher, opt_state = {**state.teacher, EXPERT: new.student}, {**state.opt_state, EXPERT: new.opt_state}
        return state._replace(teacher=teacher, opt_state=opt_state, step=new.step), {"loss": metrics["loss"], **named}

    def _new_only(batch: Batch, task: Array) -> Batch:
        label, mask = batch["label"], batch.get("mask")
        classes = jax.ShapeDtypeStruct((1, 1 + max(max(group) for group in tasks)), jnp.float32)
        new = is_new(class_table(tasks, classes), task, label)
        return {**batch, "mask": new if mask is None else mask & jnp.expand_dims(new, tuple(range(1, mask.ndim)))}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        state = begun(state, batch)
        task = task_at(starts, state.step)
        expert_trains = (task > 0) & (state.step - jnp.asarray(starts)[task] < expert_steps)
        new, metrics = select(expert_trains.astype(jnp.int32), state, dict(batch), [step_of_student, step_of_expert])
        return new, with_task(metrics, task)

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        own, _ = train_state.take(state, EXPERT, "retrospection")
        return with_task(kd.evaluate(own, batch), task_at(starts, last_step(state.step)))

    return Distiller(init, step, evaluate)


def _both(old: Teacher, expert: Model) -> Teacher:
    """Returns a teacher with the outputs of both networks, under their names."""

    def init(key: Array, batch: Batch, variables: Variables) -> PyTree:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(batch))
        return {OLD: old.init(key, batch, variables), EXPERT: strongly_typed(expert.init(key, zeros))}

    def apply(state: PyTree, batch: Batch, *, key: Array | None) -> Outputs:
        outputs = {OLD: old.apply(state[OLD], batch, key=key)}
        outputs[EXPERT] = expert.apply(state[EXPERT], batch, key=None, train=False)[0]
        return {f"{name}/{output}": x for name, own in outputs.items() for output, x in own.items()}

    def update(state: PyTree, variables: Variables, step: Any) -> PyTree:
        del variables, step
        return state

    return Teacher(init, apply, update)


def _expert_key(key: Array, task: Any) -> Array:
    """Returns the key of a task's expert."""
    return jax.random.fold_in(jax.random.fold_in(key, 1), task)
