"""How far a batch is from the data that a network was trained on, told by its BatchNorms."""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

from jaxkd import checks, normalization
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables

__all__ = ["watched", "with_batch_statistics"]

_Watch = Callable[..., None]
_watching: contextvars.ContextVar[_Watch | None] = contextvars.ContextVar("jaxkd_watching_norms", default=None)


def with_batch_statistics(model: Model, *, name: str = "batch_statistics") -> Model:
    """Adds, in inference mode, how far the inputs of the BatchNorms are from what their running statistics say.

    ``Σ_l ‖μ_l(x) − μ̂_l‖₂ + ‖σ²_l(x) − σ̂²_l‖₂`` over the BatchNorms l, where μ_l and σ²_l are mean and (biased) variance
    of each channel of the layer's input over the whole batch. Yin et al., "Dreaming to Distill: Data-free Knowledge
    Transfer via DeepInversion", CVPR 2020, equation 4, with the running statistics in the place of the data's, as in
    its equation 5. A norm of 0 has no slope here.

    The batch is that of all devices, whatever the number of `jaxkd.normalization.replicas`, without its masked
    examples. The value is differentiable by the input. Training mode is as it was, without the output.

    A linen module is watched as it is, except within ``nn.remat``, ``nn.scan`` and their like, whose inner values do
    not come out. An nnx module goes through `watched` before it goes into its adapter.

    Args:
      model: from an adapter.
      name: of the new output.

    Returns:
      A `Model` with the same variables and one more output ``[batch]``, of the same value in every row.

    Raises:
      ValueError: when it is applied: the model has no BatchNorm that could be seen, or has an output of that name.

    >>> import jax
    >>> from jaxkd import adapters
    >>> model = with_batch_statistics(adapters.linen(nn.BatchNorm(), inputs="x"))
    >>> batch = {"x": jnp.array([[3.0], [5.0]])}  # mean 4 and variance 1; the running ones are 0 and 1
    >>> variables = model.init(jax.random.key(0), batch)
    >>> model.apply(variables, batch, key=None, train=False)[0]["batch_statistics"]
    Array([4., 4.], dtype=float32)
    """

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        if train:
            return model.apply(variables, batch, key=key, train=True)
        mask, found = checks.example_mask(batch), []

        def watch(x: Array, axis: Any, own: Array | None, mean: Array, var: Array) -> None:
            # One replica, for it is the whole batch that should look like the data.
            share = normalization.share_of(mask, normalization.mapped_axis(), None if mask is None else len(mask), 1)
            means, variances, count = normalization.statistics(x, axis, share, fast=False, mask=own)
            distance = _norm(means[0] - mean) + _norm(variances[0] - var)
            found.append(jnp.where(jnp.max(count) > 0, distance, 0))

        token = _watching.set(watch)
        try:
            with nn.intercept_methods(functools.partial(_intercept, watch)):
                outputs, state = model.apply(variables, batch, key=key, train=False)
        finally:
            _watching.reset(token)
        if name in outputs:
            raise ValueError(f"with_batch_statistics: {name!r} is an output of the model already; give another name=.")
        if not found:
            raise ValueError(
                "with_batch_statistics: expected a model with BatchNorms, saw none of Flax. An nnx module is made to "
                "be seen by adapters.nnx(batch_statistics.watched(module)); without BatchNorms, train from another "
                "teacher, or by a method that does not need them, such as dafl."
            )
        rows = next(iter(outputs.values())).shape[0] if mask is None else len(mask)
        return {**outputs, name: jnp.broadcast_to(functools.reduce(jnp.add, found), (rows,))}, state

    return Model(model.init, apply)


def watched(module: Any) -> Any:
    """An nnx module, or its constructor, whose BatchNorms `with_batch_statistics` sees; all else is as it was.

    Args:
      module: as for `jaxkd.adapters.nnx`. It is copied.

    Returns:
      A module of the same structure and weights, or a constructor of such.

    >>> from jaxkd import adapters
    >>> norm = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
    >>> model = with_batch_statistics(adapters.nnx(watched(norm), inputs="x"))
    >>> batch = {"x": jnp.array([[3.0], [5.0]])}
    >>> model.apply(adapters.variables(norm), batch, key=None, train=False)[0]["batch_statistics"]
    Array([4., 4.], dtype=float32)
    """
    if not isinstance(module, nnx.Module):
        return lambda rngs: watched(module(rngs))
    copy = nnx.clone(module)
    for _, node in nnx.iter_graph(copy):
        if isinstance(node, nnx.BatchNorm):
            node.__class__ = _watched_kind(type(node))
    return copy


@functools.cache  # a module's structure is compared by its types: one type for each
def _watched_kind(kind: Any) -> Any:
    def call(self: Any, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Any:
        watch = _watching.get()
        if watch is not None:
            watch(x, self.axis, mask, self.mean[...], self.var[...])
        return kind.__call__(self, x, use_running_average=use_running_average, mask=mask)

    return type(kind.__name__, (kind,), {"__call__": call})


def _intercept(watch: _Watch, next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Shows linen's BatchNorms what they are called with."""
    module = context.module
    if isinstance(module, nn.BatchNorm) and context.method_name == "__call__":
        call = inspect.signature(nn.BatchNorm.__call__).bind(module, *args, **kwargs).arguments
        running = module.variables["batch_stats"]
        watch(call["x"], module.axis, call.get("mask"), running["mean"], running["var"])
    return next_fun(*args, **kwargs)


def _norm(x: Array) -> Array:
    square = jnp.sum(x**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
