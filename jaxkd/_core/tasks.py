"""Sequences of tasks: their classes, lengths in steps, and the task at a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks
from jaxkd.types import Array

Tasks = Sequence[Sequence[int]]
"""Class numbers of each task, disjoint."""

TaskSteps = int | Sequence[int]
"""Number of steps of each task, or one number for all tasks."""


def check_tasks(name: str, tasks: Tasks) -> tuple[tuple[int, ...], ...]:
    """Returns the tasks as tuples of class numbers.

    Raises:
      ValueError: there are no tasks, a task is empty, or a class is negative or occurs twice.
    """
    groups = tuple(tuple(int(number) for number in group) for group in tasks)
    flat = [number for group in groups for number in group]
    if not groups or not all(groups) or len(set(flat)) < len(flat) or min(flat) < 0:
        raise ValueError(
            f"{name}, tasks: expected the class numbers of each task, at least one task and no class twice, such as "
            f"[[0, 1], [2, 3]], got {[list(group) for group in groups]}."
        )
    return groups


def task_lengths(name: str, steps: TaskSteps, tasks: int) -> tuple[int, ...]:
    """Returns the number of steps of each task.

    Raises:
      ValueError: there is not one number for each task, or a number is not positive. The first one of several may be 0.
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


def task_starts(name: str, steps: TaskSteps, tasks: int) -> np.ndarray:
    """Returns the first step of each task.

    >>> task_starts("", [3, 4, 5], 3).tolist()
    [0, 3, 7]
    """
    return np.cumsum([0, *task_lengths(name, steps, tasks)[:-1]], dtype=np.int32)


def task_at(starts: np.ndarray, step: Any) -> Array:
    """Returns the number of the task at a step.

    >>> task_at(np.array([0, 3, 7]), 3)
    Array(1, dtype=int32)
    """
    return jnp.searchsorted(jnp.asarray(starts), jnp.asarray(step, jnp.int32), side="right") - 1


def last_step(step: Any) -> Array:
    """Returns the step before, at least 0.

    An evaluation at the boundary of two tasks belongs to the one that just ended.

    >>> last_step(7), last_step(0)
    (Array(6, dtype=int32), Array(0, dtype=int32))
    """
    return jnp.maximum(jnp.asarray(step, jnp.int32) - 1, 0)


def class_table(tasks: Tasks, logits: Any) -> Array:
    """Returns ``bool[tasks, classes]``, True where a class belongs to a task.

    Raises:
      ValueError: a class has no logit.
    """
    classes, highest = logits.shape[-1], max(max(group) for group in tasks)
    if len(logits.shape) != 2 or highest >= classes:
        raise ValueError(
            f"tasks: expected logits [batch, classes] of at least {highest + 1} classes, one for each class of all "
            f"tasks, got {checks.shape(logits)}. Give the student its whole classifier from the start."
        )
    table = np.zeros((len(tasks), classes), bool)
    for row, group in zip(table, tasks, strict=True):
        row[list(group)] = True
    return jnp.asarray(table)


def is_new(table: Array, task: Array, label: Array) -> Array:
    """Returns ``bool[batch]``, True for examples with a class of the given task."""
    inside = (label >= 0) & (label < table.shape[1])
    return inside & table[task, jnp.where(inside, label, 0)]
