"""Tasks that come one after the other under one layer of logits: whose classes compete, and in which loss.

The student has one logit for every class of every task. A *head* is a set of them with a softmax of its own. A function
of the table of classes and of the task at hand says which heads learn from labels and which are held to the model of
before:

=================  ========================================  ===============================================
function           labels are told among                     the old model is kept to by
=================  ========================================  ===============================================
`task_heads`       the classes of the label's own task       each old task's classes, one softmax for each
`two_heads`        the new classes, or all the old ones      all old classes, in one softmax
`single_head`      all classes seen so far                   all old classes, in one softmax
=================  ========================================  ===============================================

With `task_heads` the tasks are told apart by who asks, as in Li & Hoiem's paper; the other two are the forms in which
class-incremental work uses it, where a test example does not say of which task it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import checks, losses
from jaxkd.objectives.compose import Schedule, lookup, weighted
from jaxkd.types import Array, Context, LossOut, LossVars, Objective

__all__ = ["Heads", "held_to_old", "single_head", "task_heads", "taught_new", "told_by_labels", "two_heads"]

Heads = Callable[[Array, Array], tuple[Array, Array]]
"""``(table, task) -> (told, held)``: the table of classes ``bool[tasks, classes]`` and the task's number to the heads
that labels are told by and the heads that are held to the old model, ``bool[heads, classes]`` each. A head without
classes is none."""

Tasks = Sequence[Sequence[int]]
Length = int | Sequence[int]


def task_heads(table: Array, task: Array) -> tuple[Array, Array]:
    """A head for each task: Li & Hoiem, "Learning without Forgetting", 2017, where the old heads' losses are added.

    >>> table = jnp.array([[True, True, False, False], [False, False, True, True]])
    >>> told, held = task_heads(table, 1)
    >>> told.astype(int).tolist(), held.astype(int).tolist()
    ([[1, 1, 0, 0], [0, 0, 1, 1]], [[1, 1, 0, 0], [0, 0, 0, 0]])
    """
    number = jnp.arange(table.shape[0])[:, None]
    return table & (number <= task), table & (number < task)


def single_head(table: Array, task: Array) -> tuple[Array, Array]:
    """One head over all classes seen so far, and one over the old ones for the old model.

    >>> table = jnp.array([[True, True, False, False], [False, False, True, True]])
    >>> told, held = single_head(table, 1)
    >>> told.astype(int).tolist(), held.astype(int).tolist()
    ([[1, 1, 1, 1]], [[1, 1, 0, 0]])
    """
    seen, old = task_heads(table, task)
    return jnp.any(seen, axis=0, keepdims=True), jnp.any(old, axis=0, keepdims=True)


def two_heads(table: Array, task: Array) -> tuple[Array, Array]:
    """One head over the new classes, one over all the old ones: what is new is learned without pushing the old down.

    >>> table = jnp.array([[True, True, False, False], [False, False, True, True]])
    >>> told, held = two_heads(table, 1)
    >>> told.astype(int).tolist(), held.astype(int).tolist()
    ([[0, 0, 1, 1], [1, 1, 0, 0]], [[1, 1, 0, 0]])
    """
    seen, old = single_head(table, task)
    return jnp.concatenate([seen & ~old, old]), old


def told_by_labels(
    tasks: Tasks,
    steps: Length,
    *,
    heads: Heads = task_heads,
    student: str = "student/logits",
    labels: str = "batch/label",
    retained: bool = False,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Cross-entropy with labels in a sequence of tasks, among the classes of the head that has the label.

    Equation 1 of Li & Hoiem, 2017. Examples retained from an earlier task are told in the head that has their class.

    Args:
      tasks: the class numbers of each task, disjoint.
      steps: how long each task lasts; one number for all of them. The last one goes on.
      heads: whose classes compete.
      student: path of the logits ``[batch, classes]``.
      labels: path of the classes ``int[batch]``.
      retained: True leaves out the examples of the new task's classes, from the second task on; they have another
        teacher then.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` without parameters. In training, a label of a task that has not begun is NaN, so that data and
      scheme that disagree in their steps are heard of; an evaluation does not count it. An evaluation between two
      tasks is of the one that made the last step.

    Raises:
      ValueError: tasks or steps make no sense; or, when it is used: there are fewer logits than classes.

    >>> objective = told_by_labels([[0, 1], [2, 3]], steps=10)
    >>> context = Context({"logits": jnp.zeros((1, 4))}, {}, {"label": jnp.array([2])}, jnp.int32(11))
    >>> objective.apply({}, {}, context, None).value  # log 2: the classes of the first task do not compete
    Array(0.6931472, dtype=float32)
    """
    tasks, starts = check_tasks("told_by_labels", tasks), starts_of("told_by_labels", steps, len(tasks))

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        del params
        logits, label = lookup(context, student), lookup(context, labels)
        table, task = table_of(tasks, logits), _task(starts, context, key)
        told, _ = heads(table, task)
        inside = (label >= 0) & (label < logits.shape[-1])
        has = told[:, jnp.where(inside, label, 0)] & inside[None, :]  # [heads, batch]
        rivals = jnp.any(has.T[:, :, None] & told[None, :, :], axis=1)
        begun = jnp.any(has, axis=0)
        counts = _counted(context, label)
        if retained:
            counts &= ~is_new(table, task, label) | (task == 0)
        if key is None:  # out of range is a mistake anywhere
            counts &= begun | ~inside
        values = losses.cross_entropy(jnp.where(rivals, logits, -jnp.inf), label, where=counts & begun)
        return weighted(jnp.where(counts & ~begun, jnp.nan, values), counts, weight, context, state)

    return Objective(_initialised(apply), apply)


def held_to_old(
    tasks: Tasks,
    steps: Length,
    *,
    heads: Heads = task_heads,
    temperature: float | Array = 2.0,
    student: str = "student/logits",
    teacher: str = "teacher/logits",
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """What the model of before the task says of the old classes: ``Σ_h KL(p_t^h ‖ p_s^h)``, p at the temperature.

    Equations 2 to 4 of Li & Hoiem, 2017, for all examples, the new task's among them. As there, nothing is multiplied
    by T². The paper's cross-entropy is larger by the teacher's entropy, which has no gradient.

    Args:
      tasks: the class numbers of each task, disjoint.
      steps: how long each task lasts.
      heads: which of the old classes share a softmax.
      temperature: T > 0; the paper's is 2.
      student: path of the student's logits ``[batch, classes]``.
      teacher: path of the old model's, of the same shape.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` without parameters: 0, without a gradient, in the first task.

    Raises:
      ValueError: tasks or steps make no sense; or, when it is used: there are fewer logits than classes, or the two
        have other shapes.

    >>> objective = held_to_old([[0, 1], [2, 3]], steps=10)
    >>> one, other = jnp.zeros((1, 4)), jnp.array([[0.0, 2.0, 7.0, -7.0]])
    >>> at = lambda step: objective.apply({}, {}, Context({"logits": one}, {"logits": other}, {}, step), None).value
    >>> at(0), at(11).round(4)
    (Array(0., dtype=float32), Array(0.1109, dtype=float32))
    """
    tasks, starts = check_tasks("held_to_old", tasks), starts_of("held_to_old", steps, len(tasks))

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        del params
        logits, old = lookup(context, student), lookup(context, teacher)
        _, held = heads(table_of(tasks, logits), _task(starts, context, key))
        counts = _counted(context, logits[:, 0])
        values = kl_of_heads(logits, old, held, temperature, counts)
        return weighted(values, counts, weight, context, state)

    return Objective(_initialised(apply), apply)


def taught_new(
    tasks: Tasks,
    steps: Length,
    *,
    temperature: float | Array,
    teacher: str,
    student: str = "student/logits",
    labels: str = "batch/label",
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """What an expert of the new task says of its classes, for its examples, from the second task on: ``KL(p_t ‖ p_s)``.

    The expert's half of Hou et al., ECCV 2018; nothing is multiplied by T².

    Args:
      tasks: the class numbers of each task, disjoint.
      steps: how long each task lasts.
      temperature: T > 0.
      teacher: path of the expert's logits ``[batch, classes]``.
      student: path of the student's, of the same shape.
      labels: path of the classes ``int[batch]``, which say whose example it is.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` without parameters; the mean is over the new task's examples.

    Raises:
      ValueError: as `held_to_old`.

    >>> objective = taught_new([[0, 1], [2, 3]], 10, temperature=1.0, teacher="teacher/expert/logits")
    >>> teacher, batch = {"expert/logits": jnp.array([[9.0, 0.0, 0.0, 0.0]])}, {"label": jnp.array([2])}
    >>> objective.apply({}, {}, Context({"logits": jnp.zeros((1, 4))}, teacher, batch, 11), None).value
    Array(0., dtype=float32)
    """
    tasks, starts = check_tasks("taught_new", tasks), starts_of("taught_new", steps, len(tasks))

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        del params
        logits, expert, label = lookup(context, student), lookup(context, teacher), lookup(context, labels)
        table, task = table_of(tasks, logits), _task(starts, context, key)
        counts = _counted(context, label) & is_new(table, task, label) & (task > 0)
        values = kl_of_heads(logits, expert, table[task][None], temperature, counts)
        return weighted(values, counts, weight, context, state)

    return Objective(_initialised(apply), apply)


def kl_of_heads(student: Array, teacher: Array, heads: Array, temperature: float | Array, where: Array) -> Array:
    """``Σ_h KL(p_t^h ‖ p_s^h)`` for each example ``[batch]``, p the softmax over the head's classes of z / T.

    A head without classes adds nothing: what it would divide by is never computed.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)}, got {list(teacher.shape)}. Every network of "
            "the sequence has a logit for each class of all tasks."
        )
    student, teacher = (jnp.where(heads[None], x[:, None, :], -jnp.inf) for x in (student, teacher))
    counts = where[:, None] & jnp.any(heads, axis=1)[None, :]
    values = losses.soft_target_kl(student, teacher, temperature=temperature, where=counts)
    return jnp.sum(values, axis=1) / jnp.asarray(temperature, values.dtype) ** 2


def check_tasks(name: str, tasks: Tasks) -> tuple[tuple[int, ...], ...]:
    """The tasks as tuples of class numbers.

    Raises:
      ValueError: there are none, one is empty, or a class is negative or in two of them.
    """
    groups = tuple(tuple(int(number) for number in group) for group in tasks)
    flat = [number for group in groups for number in group]
    if not groups or not all(groups) or len(set(flat)) < len(flat) or min(flat) < 0:
        raise ValueError(
            f"{name}, tasks: expected the class numbers of each task, at least one, none of them twice, such as "
            f"[[0, 1], [2, 3]], got {[list(group) for group in groups]}."
        )
    return groups


def lengths_of(name: str, steps: Length, tasks: int) -> tuple[int, ...]:
    """How many steps each task has.

    Raises:
      ValueError: there is not one number for each task, or one is not positive. The first may be 0, if there are more.
    """
    each = (steps,) * tasks if isinstance(steps, int) else tuple(steps)
    if not tasks:
        raise ValueError(f"{name}, steps: expected a number of steps for each task, got none.")
    least = [0 if tasks > 1 and not isinstance(steps, int) else 1] + [1] * (tasks - 1)
    if len(each) != tasks or any(number < low for number, low in zip(each, least, strict=True)):
        raise ValueError(
            f"{name}, steps: expected a positive number of steps, or one for each of the {tasks} tasks (the first may "
            f"be 0, for a task that the student was trained on before), got {steps}."
        )
    return each


def starts_of(name: str, steps: Length, tasks: int) -> np.ndarray:
    """The step at which each task begins.

    >>> starts_of("", [3, 4, 5], 3).tolist()
    [0, 3, 7]
    """
    return np.cumsum([0, *lengths_of(name, steps, tasks)[:-1]], dtype=np.int32)


def task_at(starts: np.ndarray, step: Any) -> Array:
    """The number of the task at a step.

    >>> task_at(np.array([0, 3, 7]), 3)
    Array(1, dtype=int32)
    """
    return jnp.searchsorted(jnp.asarray(starts), jnp.asarray(step, jnp.int32), side="right") - 1


def table_of(tasks: Sequence[Sequence[int]], logits: Any) -> Array:
    """``bool[tasks, classes]``: which classes each task has.

    Raises:
      ValueError: there is no logit for one of them.
    """
    classes, highest = logits.shape[-1], max(max(group) for group in tasks)
    if len(logits.shape) != 2 or highest >= classes:
        raise ValueError(
            f"tasks: expected logits [batch, classes] of at least {highest + 1} classes, one for each class of all "
            f"tasks, got {checks.shape(logits)}. Give the student its whole head from the start."
        )
    table = np.zeros((len(tasks), classes), bool)
    for row, group in zip(table, tasks, strict=True):
        row[list(group)] = True
    return jnp.asarray(table)


def _task(starts: np.ndarray, context: Context, key: Array | None) -> Array:
    """The task of the step that is taken or, in an evaluation, which has no key, of the last one that was."""
    return task_at(starts, context.step if key is not None else last_step(context.step))


def last_step(step: Any) -> Array:
    """The step that led to a state: one evaluates at the end of a task to know of that task, not of the next.

    >>> last_step(7), last_step(0)
    (Array(6, dtype=int32), Array(0, dtype=int32))
    """
    return jnp.maximum(jnp.asarray(step, jnp.int32) - 1, 0)


def is_new(table: Array, task: Array, label: Array) -> Array:
    """Which examples are of the task at hand, ``bool[batch]``."""
    inside = (label >= 0) & (label < table.shape[1])
    return inside & table[task, jnp.where(inside, label, 0)]


def _counted(context: Context, like: Array) -> Array:
    mask = checks.example_mask(context.batch)
    return jnp.ones(like.shape, bool) if mask is None else mask


def _initialised(apply: Callable[..., LossOut]) -> Callable[..., LossVars]:
    """An init that owns nothing, and finds out by an abstract call whether everything is there and fits."""

    def init(key: Array, context: Context) -> LossVars:
        del key
        whole = context._replace(axis_name=None)
        jax.eval_shape(lambda c: apply({}, {}, c, None).value, whole)
        return LossVars()

    return init
