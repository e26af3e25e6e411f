"""Models that begin with trained variables."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import adapters
from jaxkd._core import checks
from jaxkd._core.train_state import starting_from
from jaxkd.types import Array, Batch, Model, Variables


def pretrained(model: Model, variables: Any) -> Model:
    """Returns a model whose ``init`` gives trained variables instead of random ones.

    It serves wherever a run initializes a model: as the student of `jaxkd.distill` and of a scheme, as a teacher that
    trains as well, in a `jaxkd.wrappers.joint`. The average of `jaxkd.teachers.ema` begins with its student; its own
    ``variables=`` begin it elsewhere. A teacher that does not train is `jaxkd.teachers.frozen`.

    Args:
      model: model from an adapter; apply other wrappers that add variables after this.
      variables: its weights: linen's dict, an nnx module or `Variables`. They are copied, so that the caller's arrays
        survive the donation of the state.

    Returns:
      A `Model` with the same ``apply``.

    Raises:
      TypeError: the model is no `Model`, or the weights have no known form.
      ValueError: from ``init``: names or shapes are not those of the model, or a dtype is wider.

    >>> import jax.numpy as jnp
    >>> model = adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> student = pretrained(model, Variables(jnp.full((2, 3), 5.0)))
    >>> student.init(jax.random.key(0), {"x": jnp.ones((1, 2))}).params[0]
    Array([5., 5., 5.], dtype=float32)
    """
    checks.contract("pretrained, model", model, Model)
    trained = adapters.variables(variables)

    def init(key: Array, batch: Batch) -> Variables:
        return starting_from("pretrained, variables", trained, jax.eval_shape(model.init, key, dict(batch)))

    return Model(init, model.apply)
