"""The offline teacher: trained before, and never changed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import adapters
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Teacher, Variables


def frozen(model: Model, variables: Any, *, train: bool = False, dtype: Any = None) -> Teacher:
    """A trained model that stays as it is (Hinton, Vinyals & Dean, 2015).

    Its weights become part of the train state, as an argument of the step rather than a constant in it, in a copy of
    their own: the caller's arrays outlive the donation of the state.

    Args:
      model: the teacher's model, from an adapter.
      variables: its weights: linen's dict, an nnx module or `Variables`.
      train: runs it in training mode (batch statistics, dropout) in each step; what that would change in its state
        is dropped. Evaluations are in inference mode all the same.
      dtype: keeps its floating-point parameters so, such as ``jnp.bfloat16`` beside a float32 student; as they are by
        default. Its other state, BatchNorm statistics, is small and stays. In what the model computes is its own
        affair: ``jaxkd.adapters.precision(model, dtype)`` has it compute in the same.

    Returns:
      A `Teacher` whose state is its `Variables`.

    Raises:
      TypeError: the weights are of no known form.
      ValueError: the dtype is not one of floating point.

    >>> model = adapters.plain(lambda key, x: jnp.eye(2), lambda w, x: x @ w, inputs="x")
    >>> teacher = frozen(model, Variables(2 * jnp.eye(2)))
    >>> batch = {"x": jnp.ones((1, 2))}
    >>> teacher.apply(teacher.init(None, batch, None), batch, key=None)["logits"]
    Array([[2., 2.]], dtype=float32)
    """
    variables = adapters.variables(variables)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"frozen, dtype: expected one of floating point, such as jnp.bfloat16, got {dtype}.")

    def init(key: Array | None, batch: Batch, student: Variables | None) -> PyTree:
        del key, batch, student

        def kept(x: Any) -> Array:
            cast = dtype is not None and jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)
            return jnp.array(x, dtype if cast else None, copy=True)

        copy = jax.tree.map(lambda x: jnp.array(x, copy=True), variables.state)
        return Variables(jax.tree.map(kept, variables.params), copy)

    def apply(state: PyTree, batch: Batch, *, key: Array | None) -> Outputs:
        training = train and key is not None  # an evaluation has no key, and wants none
        return model.apply(state, batch, key=key if training else None, train=training)[0]

    def update(state: PyTree, student: Variables, step: Any) -> PyTree:
        del student, step
        return state

    return Teacher(init, apply, update)
