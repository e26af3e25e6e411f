"""A plain pair of functions as a model: one's own code, Haiku's transform, Equinox partitions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jaxkd.adapters.conventions import Inputs, arguments, mode_flags, name_outputs
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables


def plain(
    init: Callable[..., Any],
    apply: Callable[..., Any],
    *,
    inputs: Inputs = "image",
) -> Model:
    """A pair ``init(key, *inputs) -> params`` and ``apply(params, *inputs) -> logits or {name: array}``.

    ``apply`` may also take ``train`` (or another of the usual names) and ``key``, by name; it gets them then. A model
    with state that changes is a `jaxkd.Model` written out: its two functions are the whole contract.

    Args:
      init: makes the parameters, any pytree.
      apply: the forward pass. Tapped features are further entries of the mapping it returns.
      inputs: which entries of the batch the functions are called with.

    Returns:
      A `Model` without state.

    Raises:
      ValueError: when it is called: an input is not in the batch, or the output is neither array nor mapping.

    >>> import jax, jax.numpy as jnp
    >>> model = plain(lambda key, x: jnp.ones((x.shape[-1], 2)), lambda w, x: x @ w, inputs="x")
    >>> variables = model.init(jax.random.key(0), {"x": jnp.ones((3, 5))})
    >>> model.apply(variables, {"x": jnp.ones((3, 5))}, key=None, train=False)[0]["logits"].shape
    (3, 2)
    """
    takes_key = "key" in inspect.signature(apply).parameters

    def model_init(key: Array, batch: Batch) -> Variables:
        return Variables(init(key, *arguments(inputs, batch)))

    def model_apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        named = {"key": key} if takes_key else {}
        result = apply(variables.params, *arguments(inputs, batch), **named, **mode_flags(apply, train))
        return name_outputs(result, {}), variables.state

    return Model(model_init, model_apply)
