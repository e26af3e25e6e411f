"""Cross-entropy and KL of a language model in one pass over the vocabulary."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd._core.batches import Path, lookup
from jaxkd.objectives._compose import at_step, batch_mask, reduce_values
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars, Schedule


def linear_kd(
    *paths: Path,
    label_weight: float | Array | Schedule = 1.0,
    teacher_weight: float | Array | Schedule = 1.0,
    where: str | None = None,
    **hyperparameters: Any,
) -> Objective:
    """Cross-entropy and KL of a language model in one pass over the vocabulary.

    It is ``combine(ce=term(losses.linear_cross_entropy, ...), kd=term(losses.linear_soft_target_kl, ...))`` with the
    logits computed once and one gradient of the kernel in memory instead of two:
    `jaxkd.losses.linear_cross_entropy_and_kl`. Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network",
    2015, section 2.

    Args:
      *paths: paths of the student's hidden states and kernel, of the teacher's, and of the labels, in this order.
      label_weight: weight of the cross-entropy, a number or an optax schedule of the step.
      teacher_weight: weight of the KL, a number or an optax schedule of the step.
      where: path of a boolean mask over the tokens, in place of the batch's own ``mask``.
      **hyperparameters: keyword arguments of the loss, such as ``temperature``, ``soft_cap`` and ``transposed``. A
        callable is a schedule of the step.

    Returns:
      An `Objective` without parameters or state. Its metrics are ``ce`` and ``kd``, unweighted, and their weights.

    Raises:
      ValueError: there are not five paths; from ``init``: a path does not exist, or shapes do not fit.

    >>> import jax.numpy as jnp
    >>> objective = linear_kd(
    ...     "student/hidden", "student_params/kernel", "teacher/hidden", "teacher_params/kernel", "batch/label",
    ...     label_weight=0.1, teacher_weight=0.9, temperature=2.0,
    ... )
    >>> hidden, kernel = {"hidden": jnp.ones((1, 3, 2))}, {"kernel": jnp.eye(2)}
    >>> context = Context(hidden, hidden, {"label": jnp.array([[0, 1, 1]])}, 0, None, kernel, kernel)
    >>> out = objective.apply({}, {}, context, None)
    >>> out.value.round(4), sorted(out.metrics)
    (Array(0.0693, dtype=float32), ['ce', 'ce/weight', 'kd', 'kd/weight'])
    """
    if len(paths) != 5:
        raise ValueError(
            "linear_kd: expected the paths of the student's hidden states and kernel, of the teacher's, and of the "
            f"labels, got {len(paths)} paths."
        )

    def outputs(context: Context, state: Any) -> dict[str, ObjectiveOut]:
        arguments = [lookup(context, path) for path in paths]
        mask = batch_mask(context, where, arguments[4].shape, arguments, "linear_kd")
        options = {name: at_step(value, context.step) for name, value in hyperparameters.items()}
        weights = at_step(label_weight, context.step), at_step(teacher_weight, context.step)
        values = losses.linear_cross_entropy_and_kl(*arguments, weights=weights, where=mask, **options)
        named = zip(("ce", "kd"), values, weights, strict=True)
        return {name: reduce_values(value, mask, weight, context, state) for name, value, weight in named}

    def init(key: Array, context: Context) -> ObjectiveVars:
        del key
        jax.eval_shape(lambda c: {k: x.value for k, x in outputs(c, {}).items()}, context._replace(axis_name=None))
        return ObjectiveVars()

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del params, key
        named = outputs(context, state)
        metrics = {f"{name}/{k}" if k else name: v for name, out in named.items() for k, v in out.metrics.items()}
        terms = {name: out.value for name, out in named.items()}
        return ObjectiveOut(terms["ce"] + terms["kd"], state, metrics, terms)

    return Objective(init, apply)
