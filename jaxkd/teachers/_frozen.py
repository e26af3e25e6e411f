"""The offline teacher: a trained model that never changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import adapters
from jaxkd._core import checks
from jaxkd._core.arrays import casts
from jaxkd._core.arrays.shardings import automatic
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Teacher, Variables


def frozen(model: Model, variables: Any, *, train: bool = False, dtype: Any = None) -> Teacher:
    """A trained model that never changes (Hinton, Vinyals & Dean, 2015).

    Its weights are part of the train state: an argument of the step rather than a constant in it. They are copied, so
    that the caller's arrays survive the donation of the state.

    Args:
      model: the teacher's model, from an adapter.
      variables: weights of the teacher: linen's dict, an nnx module or `Variables`.
      train: evaluate it in training mode (batch statistics, dropout) in each step. Updates of its state in that mode
        are dropped. Evaluations always use inference mode.
      dtype: dtype of the stored floating-point parameters, such as ``jnp.bfloat16`` beside a float32 student; None
        leaves it unchanged. Finite values stay finite. BatchNorm statistics, which are small, keep their dtype. This
        does not set the dtype of the computation: ``jaxkd.wrappers.precision(model, dtype)`` does.

    Returns:
      A `Teacher` whose state is its `Variables`.

    Raises:
      TypeError: the model is no `Model`, or the weights have no known form.
      ValueError: the dtype is not a floating-point dtype.

    >>> model = adapters.plain(lambda key, x: jnp.eye(2), lambda w, x: x @ w, inputs="x")
    >>> teacher = frozen(model, Variables(2 * jnp.eye(2)))
    >>> batch = {"x": jnp.ones((1, 2))}
    >>> teacher.apply(teacher.init(None, batch, None), batch, key=None)["logits"]
    Array([[2., 2.]], dtype=float32)
    """
    checks.contract("frozen, model", model, Model)
    variables = adapters.variables(variables)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"frozen, dtype: expected a floating-point dtype, such as jnp.bfloat16, got {dtype}.")

    def init(key: Array | None, batch: Batch, student: Variables | None) -> PyTree:
        del key, batch, student

        def stored(x: Any, dtype: Any = None) -> Array:
            return jnp.array(
                casts.cast(x, dtype if jnp.issubdtype(jnp.result_type(x), jnp.floating) else None), copy=True
            )

        params, kept = automatic(tuple(variables))
        return Variables(jax.tree.map(lambda x: stored(x, dtype), params), jax.tree.map(stored, kept))

    def apply(state: PyTree, batch: Batch, *, key: Array | None) -> Outputs:
        training = train and key is not None  # no key: an evaluation, which always uses inference mode
        return model.apply(state, batch, key=key if training else None, train=training)[0]

    def update(state: PyTree, student: Variables, step: Any) -> PyTree:
        del student, step
        return state

    return Teacher(init, apply, update)
