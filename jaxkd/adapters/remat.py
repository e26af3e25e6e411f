"""Rematerialisation: a model whose activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables

__all__ = ["remat"]


def remat(model: Model, policy: Callable[..., Any] | None = None) -> Model:
    """The same model, of whose training pass only what a policy saves is kept; the rest is computed again.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, by `jax.checkpoint` around the whole model. What
    is kept while the objective is computed shrinks: with no policy to the parameters and the batch, with
    ``jax.checkpoint_policies.dots_saveable`` to the results of matrix products. The numbers are the same. Where this
    model's own backward pass is what fills the memory, no policy does not help: that pass then begins by computing all
    activations again. There a deep model had better rematerialise its blocks one by one, with ``nn.remat`` or
    ``nnx.remat`` inside of it, which adapters leave as they are; or see `jaxkd.adapters.accumulate`. XLA for the CPU
    merges the second computation into the first, unless it is in a loop, and saves nothing.

    Args:
      model: from an adapter.
      policy: which values are kept, from `jax.checkpoint_policies`; none by default.

    Returns:
      A `Model` with the same variables.

    >>> import jax.numpy as jnp
    >>> from jaxkd import adapters
    >>> wave = adapters.plain(lambda key, x: jnp.ones(()), lambda w, x: jnp.sin(jnp.sin(w * x)), inputs="x")
    >>> def kept(model):
    ...     forward = lambda w: model.apply(Variables(w), {"x": jnp.ones(9)}, key=None, train=True)[0]["logits"]
    ...     return len(jax.tree.leaves(jax.vjp(forward, jnp.float32(2))[1]))
    >>> kept(wave) > kept(remat(wave))
    True
    """

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        if not train:
            return model.apply(variables, batch, key=key, train=False)

        def forward(variables: Variables, batch: Batch, key: Array | None) -> tuple[Outputs, PyTree]:
            outputs, state = model.apply(variables, batch, key=key, train=True)
            return dict(outputs), state

        return jax.checkpoint(forward, policy=policy)(variables, dict(batch), key)

    return Model(model.init, apply)
