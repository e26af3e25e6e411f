"""A loss that a model computes itself, as one of its outputs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxkd._core import batches, checks
from jaxkd._core.batches import lookup
from jaxkd.objectives._compose import reduce_values
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars, Schedule


def model_loss(path: str, *, weight: float | Array | Schedule = 1.0) -> Objective:
    """Adds a scalar loss that a model returns among its outputs.

    Examples are the load-balancing loss of a mixture of experts, a codebook's commitment loss or a Kullback-Leibler
    term of a variational layer. The model averages over the batch, and excludes masked examples from its mean. Devices
    and batches are merged by their numbers of unmasked examples.

    Args:
      path: path of the scalar, such as ``"student/aux_loss"``.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` without parameters. A batch of which all examples are masked gives 0.

    Raises:
      ValueError: from ``init``: the path does not exist or does not hold a floating-point scalar.

    >>> objective = model_loss("student/aux_loss", weight=0.1)
    >>> context = Context({"aux_loss": jnp.array(2.0)}, {}, {"label": jnp.array([0, 1, 1])}, 0)
    >>> objective.apply({}, {}, context, None).value
    Array(0.2, dtype=float32)
    """

    def scalar(context: Context) -> Array:
        value = lookup(context, path)
        if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"model_loss, {path}: expected a floating-point scalar, got {checks.shape(value)}. Losses of each "
                f"example or token are a term: jaxkd.term(lambda values: values, {path!r})."
            )
        return value  # type: ignore[no-any-return]

    def init(key: Array, context: Context) -> ObjectiveVars:
        del key
        scalar(context)
        return ObjectiveVars()

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del params, key
        mask = batches.example_mask(context.batch)
        size = batches.batch_size(context.batch) if mask is None else mask.shape[0]
        values = jnp.broadcast_to(jnp.asarray(scalar(context)), (size,))
        return reduce_values(values, mask, weight, context, state)

    return Objective(init, apply)
