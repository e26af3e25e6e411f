"""Objectives for tasks that arrive one after another under one classifier.

The student has one logit for each class of all tasks. A *head* is a set of classes with a softmax of its own. A
function of the class table and the current task defines the heads of the labels and those of the distillation:

==================  ====================================  ===============================================
function            the label competes with               the earlier student is distilled on
==================  ====================================  ===============================================
`per_task_softmax`  the classes of the label's own task   each old task's classes, one softmax for each
`split_softmax`     the new classes, or all the old ones  all old classes, in one softmax
`joint_softmax`     all classes seen so far               all old classes, in one softmax
==================  ====================================  ===============================================

`per_task_softmax` assumes that the task of a test example is known, as in Li & Hoiem's paper. The other two are common
in class-incremental learning, where it is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from jaxkd._core import batches
from jaxkd._core.batches import lookup
from jaxkd._core.tasks import Tasks, TaskSteps, check_tasks, class_table, is_new, last_step, task_at, task_starts
from jaxkd.objectives._checks import positive
from jaxkd.objectives._compose import reduce_values
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars, Schedule

__all__ = [
    "Heads",
    "old_class_kd",
    "joint_softmax",
    "per_task_softmax",
    "new_class_kd",
    "task_cross_entropy",
    "split_softmax",
]

Heads = Callable[[Array, Array], tuple[Array, Array]]
"""``(table, task) -> (label_heads, old_heads)``: from the class table ``bool[tasks, classes]`` and the number of the
current task, the heads of the cross-entropy and those of the distillation, ``bool[heads, classes]`` each. Rows without
a class are ignored."""


def per_task_softmax(table: Array, task: Array) -> tuple[Array, Array]:
    """Returns one head for each task.

    Li & Hoiem, "Learning without Forgetting", 2017, which adds the losses of the old heads.

    >>> table = jnp.array([[True, True, False, False], [False, False, True, True]])
    >>> label_heads, old_heads = per_task_softmax(table, 1)
    >>> label_heads.astype(int).tolist(), old_heads.astype(int).tolist()
    ([[1, 1, 0, 0], [0, 0, 1, 1]], [[1, 1, 0, 0], [0, 0, 0, 0]])
    """
    number = jnp.arange(table.shape[0])[:, None]
    return table & (number <= task), table & (number < task)


def joint_softmax(table: Array, task: Array) -> tuple[Array, Array]:
    """Returns one head of all classes seen so far, and one of the old classes.

    >>> table = jnp.array([[True, True, False, False], [False, False, True, True]])
    >>> label_heads, old_heads = joint_softmax(table, 1)
    >>> label_heads.astype(int).tolist(), old_heads.astype(int).tolist()
    ([[1, 1, 1, 1]], [[1, 1, 0, 0]])
    """
    seen, old = per_task_softmax(table, task)
    return jnp.any(seen, axis=0, keepdims=True), jnp.any(old, axis=0, keepdims=True)


def split_softmax(table: Array, task: Array) -> tuple[Array, Array]:
    """Returns one head of the new classes and one of all old classes.

    The new classes are learned without lowering the probabilities of the old ones.

    >>> table = jnp.array([[True, True, False, False], [False, False, True, True]])
    >>> label_heads, old_heads = split_softmax(table, 1)
    >>> label_heads.astype(int).tolist(), old_heads.astype(int).tolist()
    ([[0, 0, 1, 1], [1, 1, 0, 0]], [[1, 1, 0, 0]])
    """
    seen, old = joint_softmax(table, task)
    return jnp.concatenate([seen & ~old, old]), old


def task_cross_entropy(
    tasks: Tasks,
    steps: TaskSteps,
    *,
    softmax: Heads = per_task_softmax,
    student: str = "student/logits",
    label_path: str = "batch/label",
    retained: bool = False,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Cross-entropy in a sequence of tasks, over the classes of the label's head.

    Equation 1 of Li & Hoiem, 2017. The label of an example that is retained from an earlier task competes in the head
    of its class.

    Args:
      tasks: class numbers of each task, disjoint.
      steps: number of steps of each task, or one number for all; the last task lasts until training ends.
      softmax: function that defines the heads.
      student: path of the logits ``[batch, classes]``.
      label_path: path of the classes ``int[batch]``.
      retained: True omits the new task's examples from the second task on, for schemes that distill them from an
        expert.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` without parameters. In training, a label of a task that has not begun gives NaN, which reveals data
      and scheme with different steps; an evaluation omits it. Between two tasks, an evaluation uses the earlier one.

    Raises:
      ValueError: tasks or steps are invalid; from ``init``: there are fewer logits than classes.

    >>> objective = task_cross_entropy([[0, 1], [2, 3]], steps=10)
    >>> context = Context({"logits": jnp.zeros((1, 4))}, {}, {"label": jnp.array([2])}, jnp.int32(11))
    >>> objective.apply({}, {}, context, None).value  # log 2: classes of the first task do not compete
    Array(0.6931472, dtype=float32)
    """
    tasks, starts = check_tasks("task_cross_entropy", tasks), task_starts("task_cross_entropy", steps, len(tasks))

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del params
        logits, label = lookup(context, student), lookup(context, label_path)
        table, task = class_table(tasks, logits), _task(starts, context, key)
        label_heads, _ = softmax(table, task)
        inside = (label >= 0) & (label < logits.shape[-1])
        has_label = label_heads[:, jnp.where(inside, label, 0)] & inside[None, :]  # [heads, batch]
        competing = jnp.any(has_label.T[:, :, None] & label_heads[None, :, :], axis=1)  # [batch, classes]
        begun = jnp.any(has_label, axis=0)
        mask = _mask(context, label)
        if retained:
            mask &= ~is_new(table, task, label) | (task == 0)
        if key is None:  # an evaluation may contain classes of later tasks, but no label out of range
            mask &= begun | ~inside
        values = losses.cross_entropy(jnp.where(competing, logits, -jnp.inf), label, where=mask & begun)
        return reduce_values(jnp.where(mask & ~begun, jnp.nan, values), mask, weight, context, state)

    return Objective(_checked_init(apply), apply)


def old_class_kd(
    tasks: Tasks,
    steps: TaskSteps,
    *,
    softmax: Heads = per_task_softmax,
    temperature: float | Array = 2.0,
    student: str = "student/logits",
    teacher: str = "teacher/logits",
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Distillation on the old classes, ``Σ_h KL(p_t^h ‖ p_s^h)`` over the heads h.

    Equations 2 to 4 of Li & Hoiem, 2017, with p at temperature T, for all examples, including the new ones. As there,
    the value lacks the factor T². The paper's cross-entropy is larger by the entropy of p_t, which has no gradient.

    Args:
      tasks: class numbers of each task, disjoint.
      steps: number of steps of each task, or one number for all.
      softmax: function that defines the heads.
      temperature: T > 0; 2 in the paper.
      student: path of the student's logits ``[batch, classes]``.
      teacher: path of the earlier student's logits, of the same shape.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` without parameters. In the first task its value and its gradient are 0.

    Raises:
      ValueError: tasks or steps are invalid; from ``init``: there are fewer logits than classes, or shapes differ.

    >>> objective = old_class_kd([[0, 1], [2, 3]], steps=10)
    >>> student, old = {"logits": jnp.zeros((1, 4))}, {"logits": jnp.array([[0.0, 2.0, 7.0, -7.0]])}
    >>> at = lambda step: objective.apply({}, {}, Context(student, old, {}, step), None).value
    >>> at(0), at(11).round(4)
    (Array(0., dtype=float32), Array(0.1109, dtype=float32))
    """
    positive("old_class_kd", temperature=temperature)
    tasks, starts = check_tasks("old_class_kd", tasks), task_starts("old_class_kd", steps, len(tasks))

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del params
        logits, old = lookup(context, student), lookup(context, teacher)
        _, old_heads = softmax(class_table(tasks, logits), _task(starts, context, key))
        mask = _mask(context, logits[:, 0])
        values = kl_of_heads(logits, old, old_heads, temperature, mask)
        return reduce_values(values, mask, weight, context, state)

    return Objective(_checked_init(apply), apply)


def new_class_kd(
    tasks: Tasks,
    steps: TaskSteps,
    *,
    temperature: float | Array,
    student: str = "student/logits",
    teacher: str,
    label_path: str = "batch/label",
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Distillation of an expert, ``KL(p_t ‖ p_s)``, on the new task's classes.

    The expert's term of Hou et al., ECCV 2018, on the new task's examples, from the second task on. The value is not
    multiplied by T².

    Args:
      tasks: class numbers of each task, disjoint.
      steps: number of steps of each task, or one number for all.
      temperature: T > 0.
      student: path of the student's logits, of the same shape.
      teacher: path of the expert's logits ``[batch, classes]``.
      label_path: path of the classes ``int[batch]``, which identify the new task's examples.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` without parameters; its value is the mean over the new task's examples.

    Raises:
      ValueError: as for `old_class_kd`.

    >>> objective = new_class_kd([[0, 1], [2, 3]], 10, temperature=1.0, teacher="teacher/expert/logits")
    >>> teacher, batch = {"expert/logits": jnp.array([[9.0, 0.0, 0.0, 0.0]])}, {"label": jnp.array([2])}
    >>> objective.apply({}, {}, Context({"logits": jnp.zeros((1, 4))}, teacher, batch, 11), None).value
    Array(0., dtype=float32)
    """
    positive("new_class_kd", temperature=temperature)
    tasks, starts = check_tasks("new_class_kd", tasks), task_starts("new_class_kd", steps, len(tasks))

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del params
        logits, expert, label = lookup(context, student), lookup(context, teacher), lookup(context, label_path)
        table, task = class_table(tasks, logits), _task(starts, context, key)
        mask = _mask(context, label) & is_new(table, task, label) & (task > 0)
        values = kl_of_heads(logits, expert, table[task][None], temperature, mask)
        return reduce_values(values, mask, weight, context, state)

    return Objective(_checked_init(apply), apply)


def kl_of_heads(student: Array, teacher: Array, heads: Array, temperature: float | Array, where: Array) -> Array:
    """Computes ``Σ_h KL(p_t^h ‖ p_s^h)`` ``[batch]``, without the factor T².

    p^h is the softmax of z / T over the classes of head h. A head without classes adds 0: the mask excludes it.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)}, got {list(teacher.shape)}. Every network "
            "needs a logit for each class of all tasks."
        )
    student, teacher = (jnp.where(heads[None], x[:, None, :], -jnp.inf) for x in (student, teacher))
    mask = where[:, None] & jnp.any(heads, axis=1)[None, :]
    values = losses.soft_target_kl(student, teacher, temperature=temperature, where=mask)
    return jnp.sum(values, axis=1) / jnp.asarray(temperature, values.dtype) ** 2


def _task(starts: np.ndarray, context: Context, key: Array | None) -> Array:
    """Returns the task of the step, or in an evaluation (no key) of the last one."""
    return task_at(starts, context.step if key is not None else last_step(context.step))


def _mask(context: Context, like: Array) -> Array:
    mask = batches.example_mask(context.batch)
    return jnp.ones(like.shape, bool) if mask is None else mask


def _checked_init(apply: Callable[..., ObjectiveOut]) -> Callable[..., ObjectiveVars]:
    """Returns an ``init`` without parameters that checks the context abstractly."""

    def init(key: Array, context: Context) -> ObjectiveVars:
        del key
        jax.eval_shape(lambda c: apply({}, {}, c, None).value, context._replace(axis_name=None))
        return ObjectiveVars()

    return init
