"""Rematerialization: activations are recomputed in the backward pass, not stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxkd._core import checks
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables


def remat(model: Model, policy: Callable[..., Any] | None = None) -> Model:
    """Rematerializes a model's activations in training, except those a policy saves.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, by `jax.checkpoint` around the whole model.
    Without a policy, only the parameters and the batch stay in memory while the objective is computed; with
    ``jax.checkpoint_policies.dots_saveable``, the results of matrix products as well. The results do not change.

    The peak within the model's own backward pass does not shrink, whatever the policy: that pass first recomputes all
    activations. If it fills the memory, rematerialize a deep model block by block with ``nn.remat`` or ``nnx.remat``,
    which adapters support, or use `jaxkd.wrappers.accumulate`. XLA for CPU merges the recomputation into the first
    computation and saves nothing, unless it is in a loop.

    Args:
      model: model from an adapter.
      policy: selects the values to save, from `jax.checkpoint_policies`; none by default.

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
    checks.contract("remat, model", model, Model)

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        if not train:
            return model.apply(variables, batch, key=key, train=False)

        def forward(variables: Variables, batch: Batch, key: Array | None) -> tuple[Outputs, PyTree]:
            outputs, state = model.apply(variables, batch, key=key, train=True)
            return dict(outputs), state

        return jax.checkpoint(forward, policy=policy)(variables, dict(batch), key)

    return Model(model.init, apply)
