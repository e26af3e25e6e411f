"""Calibration of a classifier or language model: `calibration`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core import batches, checks
from jaxkd.metrics._classification import included, is_class
from jaxkd.metrics._derived import derived
from jaxkd.types import Array, Context, Derived, Mean, Metrics


def calibration(context: Context, *, bins: int = 15) -> Metrics:
    """Expected calibration error of student and teacher, over examples or tokens.

    Also known as: ECE (expected calibration error).

    ``Σ_m (|B_m| / n) |acc(B_m) − conf(B_m)|`` with the predictions whose confidence, the largest probability, is in
    ``((m−1)/M, m/M]``. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3. Each bin is
    merged over batches and devices before the absolute value, so that the result is that of the whole set.

    Args:
      context: logits ``[..., classes]`` of both models, and integer labels ``[...]``. Masked entries, and those whose
        label is no class, such as -100, are excluded.
      bins: M, number of bins of equal width.

    Returns:
      ``ece`` of the student, from 0 to 1; ``teacher_ece``, if the teacher has logits of the same shape.

    Raises:
      ValueError: there are no logits, no class labels for them, or no bins.

    >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1]]))
    >>> from jaxkd.metrics import compute
    >>> context = Context({"logits": logits}, {}, {"label": jnp.array([0, 1])}, step=0)
    >>> round(compute(calibration(context))["ece"], 3)  # confident to 0.9, right for a half
    0.4
    """
    if bins < 1:
        raise ValueError(f"calibration, bins: expected at least 1, got {bins}.")
    logits, label = batches.lookup(context, "student/logits"), batches.lookup(context, "batch/label")
    if not is_class(label, logits) or logits.shape[-1] < 2:
        raise ValueError(
            "calibration: expected logits [..., classes] and integer labels [...], got "
            f"{checks.shape(logits)} and {checks.shape(label)}."
        )
    where = included(context, label, logits.shape[-1])
    found: dict[str, Mean | Derived] = {"ece": _ece(logits, label, where, bins)}
    teacher = context.teacher.get("logits")
    if teacher is not None and teacher.shape == logits.shape:
        found["teacher_ece"] = _ece(teacher, label, where, bins)
    return found


def _ece(logits: Array, label: Array, where: Array, bins: int) -> Derived:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    confidence = jnp.exp(jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1))
    gap = jnp.where(where, (jnp.argmax(logits, axis=-1) == label) - confidence, 0).ravel()
    number = jnp.clip(jnp.ceil(jnp.where(where, confidence, 0) * bins) - 1, 0, bins - 1).astype(jnp.int32)
    sums = jnp.zeros(bins, jnp.float32).at[number.ravel()].add(gap)
    # A bin's share times its gap is its sum of gaps, divided by the number of all predictions.
    return derived(_sum_of_sizes, Mean(sums, jnp.full(bins, jnp.sum(where, dtype=jnp.float32))))


def _sum_of_sizes(*gaps: Any) -> Any:
    return sum(abs(gap) for gap in gaps)
