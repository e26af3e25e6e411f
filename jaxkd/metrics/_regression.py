"""Errors of predicted numbers: `regression`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxkd._core import batches, checks
from jaxkd.metrics._derived import derived
from jaxkd.metrics._means import from_values
from jaxkd.types import Context, Derived, Mean, Metrics


def regression(context: Context, *, output: str = "logits", label_path: str = "batch/label") -> Metrics:
    """Errors of predicted numbers, over the unmasked examples or tokens.

    Args:
      context: predictions of both models, and targets.
      output: name of the output with the predictions ``[batch, ...]``.
      label_path: path of the targets, of the predictions' shape or without a last axis of 1.

    Returns:
      ``mse``, ``mae`` and ``rmse`` of the student. If the teacher has an output of that name and shape, also
      ``teacher_mse``, and ``imitation_mse``, the mean squared difference of student and teacher.

    Raises:
      ValueError: there is no such output or target, or their shapes differ.

    >>> context = Context({"logits": jnp.array([[1.0], [4.0]])}, {}, {"label": jnp.array([2.0, 2.0])}, step=0)
    >>> from jaxkd.metrics import compute
    >>> {name: round(value, 3) for name, value in compute(regression(context)).items()}
    {'mse': 2.5, 'mae': 1.5, 'rmse': 1.581}
    """
    student, target = batches.lookup(context, f"student/{output}"), batches.lookup(context, label_path)

    def plain(x: Any) -> Any:
        return x[..., 0] if x.shape == (*target.shape, 1) else x

    prediction = plain(student)
    if prediction.shape != target.shape:
        raise ValueError(
            f"regression: expected targets of the predictions' shape {list(student.shape)}, got "
            f"{checks.shape(target)} at {label_path!r}."
        )
    where = batches.mask_of_shape(context, target.shape)

    def squared(x: Any, y: Any) -> Mean:
        return from_values((x.astype(jnp.float32) - y.astype(jnp.float32)) ** 2, where)

    mse = squared(prediction, target)
    absolute = jnp.abs(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    found: dict[str, Mean | Derived] = {"mse": mse, "mae": from_values(absolute, where), "rmse": derived(jnp.sqrt, mse)}
    teacher = context.teacher.get(output)
    if teacher is not None and plain(teacher).shape == target.shape:
        found["teacher_mse"] = squared(plain(teacher), target)
        found["imitation_mse"] = squared(prediction, plain(teacher))
    return found
