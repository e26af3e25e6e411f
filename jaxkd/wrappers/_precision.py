"""Mixed precision: computation in bfloat16, training in float32."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd._core.arrays import casts
from jaxkd._core.model_calls import computing_in
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables


def precision(model: Model, compute: Any = jnp.bfloat16) -> Model:
    """Makes a model compute in another floating-point dtype than its parameters'.

    Micikevicius et al., "Mixed Precision Training", ICLR 2018: parameters, gradients and optimizer state keep their
    dtype, usually float32; the forward and backward pass use a copy of the parameters in ``compute``. The
    floating-point entries of the batch are cast as well; a finite value, such as ``finfo(float32).min`` in a mask,
    stays finite. The model's state is not cast: BatchNorm computes and averages its statistics in float32, and the new
    state has the dtypes of the old one. Outputs stay in ``compute``; the losses of this library upcast them. A layer
    with a dtype of its own computes in that dtype, on parameters that were rounded to ``compute``.

    Student and teacher may differ in precision: ``frozen(precision(model), variables)``, with weights that may be cast
    before to save memory. For float16 the loss would have to be scaled: use bfloat16.

    Args:
      model: model from an adapter.
      compute: floating-point dtype of the computation.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: the dtype is not floating point.

    >>> import jax
    >>> from jaxkd import adapters
    >>> linear = adapters.plain(lambda key, x: jnp.ones((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> batch = {"x": jnp.ones((4, 2))}
    >>> logits = lambda w: precision(linear).apply(Variables(w), batch, key=None, train=True)[0]["logits"]
    >>> logits(jnp.ones((2, 3))).dtype, jax.grad(lambda w: logits(w).sum())(jnp.ones((2, 3))).dtype
    (dtype(bfloat16), dtype('float32'))
    """
    checks.contract("precision, model", model, Model)
    if not jnp.issubdtype(compute, jnp.floating):
        raise ValueError(f"precision, compute: expected a floating-point type such as jnp.bfloat16, got {compute}.")
    compute = jnp.dtype(compute)

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        token = computing_in.set(compute)
        try:
            narrow = Variables(casts.cast_floats(variables.params, compute), variables.state)
            outputs, state = model.apply(narrow, casts.cast_floats(dict(batch), compute), key=key, train=train)
        finally:
            computing_in.reset(token)
        return outputs, casts.cast_like(state, variables.state)

    return Model(model.init, apply)
