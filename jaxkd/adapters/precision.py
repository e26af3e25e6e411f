"""Mixed precision: a model that computes in bfloat16 and is trained in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.adapters.conventions import computing_in
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables

__all__ = ["precision"]


def precision(model: Model, compute: Any = jnp.bfloat16) -> Model:
    """The same model, computing in another floating-point type than that of its parameters.

    Micikevicius et al., "Mixed Precision Training", ICLR 2018: the parameters stay as they are, float32 as a rule, and
    so do their gradients and the optimizer's state; the forward and backward pass work on a copy of them in
    ``compute``. The floating-point entries of the batch are cast as well. The state is not: BatchNorm takes and
    averages its statistics in float32, and what comes back has the type it had. Outputs are as computed; the losses of
    this library upcast them. A layer with a dtype of its own computes in that, on parameters that were rounded to
    ``compute``.

    A teacher beside it has a precision of its own: ``frozen(precision(model), variables)``, with weights that
    may have been cast before, where their memory counts. For float16 the loss would have to be scaled: use bfloat16.

    Args:
      model: from an adapter.
      compute: the floating-point type.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: the type is not of floating point.

    >>> from jaxkd import adapters
    >>> linear = adapters.plain(lambda key, x: jnp.ones((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> batch = {"x": jnp.ones((4, 2))}
    >>> logits = lambda w: precision(linear).apply(Variables(w), batch, key=None, train=True)[0]["logits"]
    >>> logits(jnp.ones((2, 3))).dtype, jax.grad(lambda w: logits(w).sum())(jnp.ones((2, 3))).dtype
    (dtype(bfloat16), dtype('float32'))
    """
    if not jnp.issubdtype(compute, jnp.floating):
        raise ValueError(f"precision, compute: expected a floating-point type such as jnp.bfloat16, got {compute}.")
    compute = jnp.dtype(compute)

    def cast(tree: PyTree) -> PyTree:
        def of(x: Any) -> Any:
            return x.astype(compute) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) else x

        return jax.tree.map(of, tree)

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        token = computing_in.set(compute)
        try:
            given = Variables(cast(variables.params), variables.state)
            outputs, state = model.apply(given, cast(dict(batch)), key=key, train=train)
        finally:
            computing_in.reset(token)
        return outputs, jax.tree.map(lambda new, old: new.astype(old.dtype), state, variables.state)

    return Model(model.init, apply)
