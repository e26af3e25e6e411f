"""Adapter of plain functions: own code, Haiku's transform, Equinox partitions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jaxkd._core import checks
from jaxkd._core.model_calls import Flag, Inputs, arguments, mode_flags, name_outputs
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables


def plain(init: Callable[..., Any], apply: Callable[..., Any], *, inputs: Inputs = "image", flag: Flag = None) -> Model:
    """Wraps a pair of functions ``(init, apply)`` as a `Model`.

    ``init(key, *inputs)`` returns the parameters, and ``apply(params, *inputs)`` returns logits or ``{name: array}``.
    If ``apply`` has a parameter ``key``, or ``train`` under one of its usual names, it is passed by name. For a model
    with state, write a `jaxkd.Model` directly: its two functions are the whole contract.

    Args:
      init: function that makes the parameters, any pytree.
      apply: the forward pass. Tapped features are further entries of the mapping it returns.
      inputs: entries of the batch that the functions are called with.
      flag: the training flag of ``apply``, if it has another name: the argument that is True in training, or a function
        from ``train`` to arguments.

    Returns:
      A `Model` without state.

    Raises:
      TypeError: one of the two is not a function.
      ValueError: ``init`` and ``apply`` raise it if an input is not in the batch, or if the output is neither an array
        nor a mapping; ``apply`` raises it if it has no argument of the flag's name.

    >>> import jax, jax.numpy as jnp
    >>> model = plain(lambda key, x: jnp.ones((x.shape[-1], 2)), lambda w, x: x @ w, inputs="x")
    >>> variables = model.init(jax.random.key(0), {"x": jnp.ones((3, 5))})
    >>> model.apply(variables, {"x": jnp.ones((3, 5))}, key=None, train=False)[0]["logits"].shape
    (3, 2)
    """
    for name, function in (("init", init), ("apply", apply)):
        if not callable(function):
            raise TypeError(f"plain, {name}: expected a function, got {checks.kind(function)}.")
    takes_key = "key" in inspect.signature(apply).parameters

    def model_init(key: Array, batch: Batch) -> Variables:
        return Variables(init(key, *arguments(inputs, batch)))

    def model_apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        named = {"key": key} if takes_key else {}
        result = apply(variables.params, *arguments(inputs, batch), **named, **mode_flags(apply, train, flag))
        return name_outputs(result, {}), variables.state

    return Model(model_init, model_apply)
