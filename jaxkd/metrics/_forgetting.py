"""Measures of continual learning, from accuracies by task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd._core import batches, checks
from jaxkd.metrics._classification import classification
from jaxkd.metrics._means import from_values
from jaxkd.types import Context, Derived, Mean, Metrics


def per_task(
    tasks: Sequence[Sequence[int]], *, steps: int | Sequence[int] | None = None
) -> Callable[[Context], Metrics]:
    """Returns a metrics function for the student's accuracy on each task.

    Pass it as ``schemes.lifelong(..., metrics=per_task(tasks))``.

    Args:
      tasks: class numbers of each task.
      steps: duration of each task in steps, as in the scheme. Predictions are then made among the classes of tasks that
        have begun, as is usual in class-incremental learning; without it, among all classes.

    Returns:
      A function of the `Context` that reports, beside the metrics of `jaxkd.metrics.classification`:
      ``accuracy/0``, ``accuracy/1``, … over the examples of each task, with predictions among all classes so far; and
      ``accuracy_within/0``, … with predictions among the task's own classes (task-incremental accuracy).

    Raises:
      ValueError: the numbers of ``steps`` and ``tasks`` differ; from the function: the batch has no labels.

    >>> logits = jnp.array([[3.0, 0.0, 0.0, 0.0], [9.0, 0.0, 1.0, 0.0]])
    >>> context = Context({"logits": logits}, {}, {"label": jnp.array([0, 2])}, step=0)
    >>> found = per_task([[0, 1], [2, 3]])(context)
    >>> [float(found[name].sum) for name in ("accuracy/0", "accuracy/1", "accuracy_within/1")]
    [1.0, 0.0, 1.0]
    """
    groups = [sorted(group) for group in tasks]
    starts = None if steps is None else _starts(steps, len(groups))

    def metrics(context: Context) -> Metrics:
        checks.known("label", {k: checks.shape(x) for k, x in context.batch.items()}, "per_task, batch entry")
        checks.known("logits", {k: checks.shape(x) for k, x in context.student.items()}, "per_task, student's output")
        logits, label, mask = context.student["logits"], context.batch["label"], batches.example_mask(context.batch)
        classes = jnp.arange(logits.shape[-1])
        members = [jnp.isin(classes, jnp.asarray(group)) for group in groups]
        correct = jnp.argmax(_restrict(logits, _seen(members, starts, context.step)), axis=-1) == label
        reported: dict[str, Mean | Derived] = dict(classification(context))
        for i, own in enumerate(members):
            where = jnp.isin(label, jnp.asarray(groups[i]))
            where = where if mask is None else where & mask
            correct_within = jnp.argmax(_restrict(logits, own), axis=-1) == label
            reported[f"accuracy/{i}"] = from_values(correct, where)
            reported[f"accuracy_within/{i}"] = from_values(correct_within, where)
        return reported

    return metrics


def task_accuracies(
    history: Iterable[Mapping[str, float]],
    steps: int | Sequence[int],
    tasks: int | None = None,
    *,
    name: str = "eval/accuracy/{task}",
) -> np.ndarray:
    """Returns the matrix of accuracies on task j after task i from a run's history.

    Args:
      history: rows that `jaxkd.training.fit` logged, ``result.history``, with an evaluation at the end of each task. An
        ``eval_every=`` that divides the durations of all tasks ensures this.
      steps: duration of each task in steps, or one number for all.
      tasks: number of tasks, if ``steps`` is one number.
      name: name of the metric, as `per_task` reports it on the split ``eval``.

    Returns:
      float64 ``[tasks, tasks]``, for the functions below.

    Raises:
      ValueError: there is no such evaluation at the end of a task.

    >>> rows = [{"step": 2, "eval/accuracy/0": 0.9, "eval/accuracy/1": 0.0},
    ...         {"step": 4, "eval/accuracy/0": 0.6, "eval/accuracy/1": 0.8}]
    >>> task_accuracies(rows, steps=[2, 2]).tolist()
    [[0.9, 0.0], [0.6, 0.8]]
    """
    count = tasks if isinstance(steps, int) else len(steps)
    if count is None:
        raise ValueError("task_accuracies, tasks: expected the number of tasks, as steps is one number for all.")
    ends = np.cumsum([steps] * count if isinstance(steps, int) else list(steps))
    rows = {int(row["step"]): row for row in history if name.format(task=0) in row}
    if missing := [int(end) for end in ends if end not in rows]:
        raise ValueError(
            f"task_accuracies: expected {name.format(task=0)!r} at the end of each task, at the steps {ends.tolist()}, "
            f"got none at {missing}. Evaluate at these steps, with metrics=per_task(...) and fit(..., eval_every=)."
        )
    return np.array([[rows[int(end)][name.format(task=j)] for j in range(count)] for end in ends], np.float64)


def average_accuracy(matrix: Any, after: int = -1) -> float:
    """Mean accuracy over the tasks learned so far: ``A_k = 1/k Σ_{j≤k} a_{k,j}``.

    Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018; Lopez-Paz & Ranzato, NeurIPS 2017,
    equation 2, after the last task.

    Args:
      matrix: ``A[i, j]``, accuracy on task j after task i.
      after: k, number of a task counted from 0; the last by default.

    Raises:
      ValueError: the matrix is not square, or there is no such task.

    >>> round(average_accuracy([[0.9, 0.0], [0.6, 0.8]]), 2)
    0.7
    """
    matrix, k = _checked(matrix, after, least=1)
    return float(np.mean(matrix[k, : k + 1]))


def forgetting(matrix: Any, after: int = -1) -> float:
    """Mean drop of old tasks from their best accuracy, after task k.

    ``F_k = 1/(k−1) Σ_{j<k} (max_{l<k} a_{l,j} − a_{k,j})``, in [−1, 1]; a negative value means that old tasks have
    improved. Chaudhry et al., ECCV 2018.

    Args:
      matrix: ``A[i, j]``, accuracy on task j after task i. Entries that were not evaluated, such as those of tasks
        that had not begun, may be NaN.
      after: k, number of a task counted from 0; the last by default.

    Raises:
      ValueError: the matrix is not square, or there is no task before.

    >>> round(forgetting([[0.9, 0.0], [0.6, 0.8]]), 2)
    0.3
    """
    matrix, k = _checked(matrix, after, least=2)
    before = np.where(np.isnan(matrix[:k, :k]), -np.inf, matrix[:k, :k])
    return float(np.mean(before.max(axis=0) - matrix[k, :k]))


def backward_transfer(matrix: Any) -> float:
    """Mean change of each task's accuracy since it was learned, in [−1, 1].

    ``BWT = 1/(T−1) Σ_{i<T} (a_{T,i} − a_{i,i})``, negative if tasks are forgotten. Lopez-Paz & Ranzato, "Gradient
    Episodic Memory for Continual Learning", NeurIPS 2017, equation 3.

    Args:
      matrix: ``A[i, j]``, accuracy on task j after task i.

    Raises:
      ValueError: the matrix is not square, or there is only one task.

    >>> round(backward_transfer([[0.9, 0.0], [0.6, 0.8]]), 2)
    -0.3
    """
    matrix, last = _checked(matrix, -1, least=2)
    return float(np.mean(matrix[last, :last] - np.diag(matrix)[:last]))


def _checked(matrix: Any, after: int, *, least: int) -> tuple[np.ndarray, int]:
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"matrix: expected accuracies [tasks, tasks], got {list(matrix.shape)}.")
    tasks = len(matrix)
    k = after + tasks if after < 0 else after
    if not least - 1 <= k < tasks:
        needs = "a task before it" if least > 1 else "one of them"
        raise ValueError(f"after: expected the number of one of {tasks} tasks, with {needs}, got {after}.")
    return matrix, k


def _starts(steps: int | Sequence[int], tasks: int) -> np.ndarray:
    each = [steps] * tasks if isinstance(steps, int) else list(steps)
    if len(each) != tasks:
        raise ValueError(f"per_task, steps: expected one number, or one for each of the {tasks} tasks, got {steps}.")
    return np.cumsum([0, *each[:-1]], dtype=np.int32)


def _seen(members: list[Any], starts: np.ndarray | None, step: Any) -> Any:
    """Returns the mask of classes of the tasks that have begun, at least the first."""
    table = jnp.stack(members)
    if starts is None:
        return jnp.ones(table.shape[1], bool)
    begun = jnp.maximum(jnp.sum(jnp.asarray(starts) < step), 1)
    return jnp.any(table & (jnp.arange(len(members)) < begun)[:, None], axis=0)


def _restrict(logits: Any, classes: Any) -> Any:
    return jnp.where(classes[None, :], logits, -jnp.inf)
