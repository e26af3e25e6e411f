"""Optimizers for several models that are trained in one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax

from jaxkd._core import checks
from jaxkd.types import REPLICAS, PyTree


def per_model(
    optimizers: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Returns an optimizer that updates each of several models separately.

    A transformation of the whole tree, such as ``optax.clip_by_global_norm``, would otherwise couple the updates of
    independent models. The parameters are those of `jaxkd.wrappers.joint`, a dict by model, or of
    `jaxkd.wrappers.replicate`, which are stacked and updated under `jax.vmap`. Joint models of joint models need one
    `per_model` inside another.

    Args:
      optimizers: one optax transformation, of which every model has a separate state, or one for each model by name.
        Names without parameters are ignored.

    Raises:
      ValueError: from ``init``: the parameters are not those of several models, a model has no optimizer, or
        several optimizers are given for `jaxkd.wrappers.replicate`, whose models are one program.

    >>> import jax.numpy as jnp
    >>> clipped = per_model(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)))
    >>> params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    >>> clipped.update({"a": jnp.array([5.0]), "b": jnp.array([0.5])}, clipped.init(params), params)[0]
    {'a': Array([-1.], dtype=float32), 'b': Array([-0.5], dtype=float32)}
    """
    several = isinstance(optimizers, Mapping)
    for name, optimizer in optimizers.items() if isinstance(optimizers, Mapping) else [("optimizers", optimizers)]:
        checks.optimizer(f"per_model, {name}", optimizer)
    wrapped: Any = jax.tree.map(optax.with_extra_args_support, optimizers, is_leaf=_is_optimizer)

    def optimizer_of(name: str) -> Any:
        return wrapped[name] if several else wrapped

    def init(params: PyTree) -> PyTree:
        if not isinstance(params, Mapping):
            raise ValueError(
                f"per_model: expected the parameters of a group, a dict by member, got {type(params).__name__}. For a "
                "single model, use its optimizer without per_model."
            )
        if several and _stacked(params):
            raise ValueError(
                "per_model: expected one optimizer for the copies of a model, which are one program, got one for each "
                f"of {sorted(optimizers)}. Only a group of models by name takes several."
            )
        if _stacked(params):
            return {REPLICAS: jax.vmap(wrapped.init)(params[REPLICAS])}
        if several:
            for name in params:
                checks.known(name, optimizers, "per_model, optimizer of")
        return {name: optimizer_of(name).init(own) for name, own in params.items()}

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, PyTree]:
        if _stacked(updates):
            rest = () if params is None else (params[REPLICAS],)
            new, new_state = jax.vmap(lambda *trees: wrapped.update(*trees, **extra))(
                updates[REPLICAS], state[REPLICAS], *rest
            )
            return {REPLICAS: new}, {REPLICAS: new_state}
        pairs = {
            name: optimizer_of(name).update(own, state[name], None if params is None else params[name], **extra)
            for name, own in updates.items()
        }
        return {name: new for name, (new, _) in pairs.items()}, {name: new for name, (_, new) in pairs.items()}

    return optax.GradientTransformationExtraArgs(init, update)


def _stacked(tree: PyTree) -> bool:
    return isinstance(tree, Mapping) and tree.keys() == {REPLICAS}


def _is_optimizer(x: Any) -> bool:
    return hasattr(x, "init") and hasattr(x, "update") and not isinstance(x, Mapping)
