"""How much a sequence of tasks made a network forget: accuracies by task, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd import checks
from jaxkd.training.metrics import classification, from_values
from jaxkd.types import Context, Mean, Metrics

__all__ = ["accuracies", "average_accuracy", "backward_transfer", "forgetting", "per_task"]


def per_task(
    tasks: Sequence[Sequence[int]], *, steps: int | Sequence[int] | None = None
) -> Callable[[Context], Metrics]:
    """The student's accuracy on each task, as metrics: ``schemes.lifelong(..., metrics=per_task(tasks))``.

    Args:
      tasks: the class numbers of each task.
      steps: how long each task lasts, as the scheme has it: then the classes of tasks that have not begun are no
        answers, as is usual in class-incremental learning. Without it, every class is one.

    Returns:
      A function of the `Context`, which reports, beside the metrics of `jaxkd.training.metrics.classification`:
      ``accuracy/0``, ``accuracy/1``, … over the examples of each task's classes, among all classes; and
      ``accuracy_within/0``, … among the task's own classes, as if one were told which task it is.

    Raises:
      ValueError: the steps are not as many as the tasks; and when it is used: the batch has no labels.

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
        logits, label, mask = context.student["logits"], context.batch["label"], checks.example_mask(context.batch)
        classes = jnp.arange(logits.shape[-1])
        of = [jnp.isin(classes, jnp.asarray(group)) for group in groups]
        told = jnp.argmax(_among(logits, _seen(of, starts, context.step)), axis=-1) == label
        found: dict[str, Mean] = dict(classification(context))
        for i, own in enumerate(of):
            there = jnp.isin(label, jnp.asarray(groups[i]))
            there = there if mask is None else there & mask
            within = jnp.argmax(_among(logits, own), axis=-1) == label
            found[f"accuracy/{i}"] = from_values(told, there)
            found[f"accuracy_within/{i}"] = from_values(within, there)
        return found

    return metrics


def accuracies(
    history: Iterable[Mapping[str, float]],
    steps: int | Sequence[int],
    tasks: int | None = None,
    *,
    name: str = "eval/accuracy/{task}",
) -> np.ndarray:
    """The matrix ``A[i, j]``, the accuracy on task j after task i, of what `jaxkd.training.fit` has logged.

    Args:
      history: the rows, ``result.history``; evaluations at the end of each task must be among them. Give `fit`
        ``eval_every=`` a number that divides the tasks' lengths.
      steps: how long each task lasts, or one number for all.
      tasks: how many there are, where ``steps`` is one number.
      name: of the metric, as `per_task` reports it on the split ``eval``.

    Returns:
      float64 ``[tasks, tasks]``, for the functions below.

    Raises:
      ValueError: there is no such evaluation at the end of a task.

    >>> rows = [{"step": 2, "eval/accuracy/0": 0.9, "eval/accuracy/1": 0.0},
    ...         {"step": 4, "eval/accuracy/0": 0.6, "eval/accuracy/1": 0.8}]
    >>> accuracies(rows, steps=[2, 2]).tolist()
    [[0.9, 0.0], [0.6, 0.8]]
    """
    count = tasks if isinstance(steps, int) else len(steps)
    if count is None:
        raise ValueError("accuracies, tasks: expected how many there are, as steps is one number for all.")
    ends = np.cumsum([steps] * count if isinstance(steps, int) else list(steps))
    rows = {int(row["step"]): row for row in history if name.format(task=0) in row}
    if missing := [int(end) for end in ends if end not in rows]:
        raise ValueError(
            f"accuracies: expected {name.format(task=0)!r} at the end of each task, at the steps {ends.tolist()}, and "
            f"there is none at {missing}. Evaluate there, with metrics=per_task(...) and fit(..., eval_every=)."
        )
    return np.array([[rows[int(end)][name.format(task=j)] for j in range(count)] for end in ends], np.float64)


def average_accuracy(matrix: Any, after: int = -1) -> float:
    """``A_k = 1/k Σ_{j≤k} a_{k,j}``: over the tasks learned so far, after task k.

    Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018; Lopez-Paz & Ranzato, NeurIPS 2017,
    equation 2, after the last task.

    Args:
      matrix: ``A[i, j]``, the accuracy on task j after task i.
      after: k, the number of a task counted from 0; the last by default.

    Returns:
      The mean.

    Raises:
      ValueError: the matrix is not square, or there is no such task.

    >>> round(average_accuracy([[0.9, 0.0], [0.6, 0.8]]), 2)
    0.7
    """
    matrix, k = _checked(matrix, after, least=1)
    return float(np.mean(matrix[k, : k + 1]))


def forgetting(matrix: Any, after: int = -1) -> float:
    """``F_k = 1/(k−1) Σ_{j<k} (max_{l<k} a_{l,j} − a_{k,j})``: how far each old task fell from its best.

    Chaudhry et al., ECCV 2018. It is between −1 and 1; below 0, old tasks have gained.

    Args:
      matrix: ``A[i, j]``, the accuracy on task j after task i. What was not evaluated, such as tasks that had not
        begun, may be NaN.
      after: k, the number of a task counted from 0; the last by default.

    Returns:
      The mean over the tasks before k.

    Raises:
      ValueError: the matrix is not square, or there is no task before.

    >>> round(forgetting([[0.9, 0.0], [0.6, 0.8]]), 2)
    0.3
    """
    matrix, k = _checked(matrix, after, least=2)
    before = np.where(np.isnan(matrix[:k, :k]), -np.inf, matrix[:k, :k])
    return float(np.mean(before.max(axis=0) - matrix[k, :k]))


def backward_transfer(matrix: Any) -> float:
    """``BWT = 1/(T−1) Σ_{i<T} (a_{T,i} − a_{i,i})``: what learning the later tasks did to each, against its own time.

    Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, equation 3.

    Args:
      matrix: ``A[i, j]``, the accuracy on task j after task i.

    Returns:
      The mean over all tasks but the last; negative where there is forgetting.

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


def _seen(of: list[Any], starts: np.ndarray | None, step: Any) -> Any:
    """Which classes have been trained on by the steps made so far; those of the first task at the beginning."""
    table = jnp.stack(of)
    if starts is None:
        return jnp.ones(table.shape[1], bool)
    made = jnp.maximum(jnp.sum(jnp.asarray(starts) < step), 1)
    return jnp.any(table & (jnp.arange(len(of)) < made)[:, None], axis=0)


def _among(logits: Any, classes: Any) -> Any:
    return jnp.where(classes[None, :], logits, -jnp.inf)
