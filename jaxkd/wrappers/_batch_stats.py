"""Distance of a batch from the running statistics of a model's BatchNorms.

How it works. `with_batch_stat_distance` observes every BatchNorm call of one inference pass and leaves its result
unchanged. Linen calls are observed by a method interceptor. Flax nnx has no interceptors, so `track_batch_stats`
replaces the class of each BatchNorm by a subclass that reports its input to the observer in a context variable.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

from jaxkd._core import axes, batch_norm, batches, checks
from jaxkd._core.model_calls import add_outputs
from jaxkd.adapters import batch_norm_call
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables

_Watch = Callable[..., None]
_watching: contextvars.ContextVar[_Watch | None] = contextvars.ContextVar("jaxkd_watching_norms", default=None)


def with_batch_stat_distance(model: Model, *, name: str = "batch_statistics") -> Model:
    """Adds the distance of BatchNorm inputs from their running statistics.

    ``Σ_l ‖μ_l(x) − μ̂_l‖₂ + ‖σ²_l(x) − σ̂²_l‖₂`` over the BatchNorms l, where μ_l and σ²_l are mean and (biased)
    variance of each channel of the layer's input over the whole batch. Yin et al., "Dreaming to Distill: Data-free
    Knowledge Transfer via DeepInversion", CVPR 2020, equation 4, with running statistics in place of the data's, as in
    its equation 5. The gradient of a norm at 0 is 0.

    The statistics are those of the batch on all devices, without its masked examples, for any number of replicas. The
    value is differentiable with respect to the input. The output exists in inference mode alone; training mode is that
    of the wrapped model.

    Linen modules are observed unedited, except within ``nn.remat``, ``nn.scan`` and other lifted transforms, whose
    inner values cannot leave the transform. An nnx module must pass through `track_batch_stats` before its adapter.

    Args:
      model: model from an adapter.
      name: name of the new output.

    Returns:
      A `Model` with the same variables and one more output ``[batch]``, which repeats the same value for each example.

    Raises:
      ValueError: ``apply`` found no BatchNorm, or the model already has an output of that name.

    >>> import jax
    >>> from jaxkd import adapters
    >>> model = with_batch_stat_distance(adapters.linen(nn.BatchNorm(), inputs="x"))
    >>> batch = {"x": jnp.array([[3.0], [5.0]])}  # mean 4 and variance 1; the running ones are 0 and 1
    >>> variables = model.init(jax.random.key(0), batch)
    >>> model.apply(variables, batch, key=None, train=False)[0]["batch_statistics"]
    Array([4., 4.], dtype=float32)
    """
    checks.contract("with_batch_stat_distance, model", model, Model)

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        if train:
            return model.apply(variables, batch, key=key, train=True)
        mask, distances = batches.example_mask(batch), []

        def watch(x: Array, axis: Any, own: Array | None, mean: Array, var: Array) -> None:
            # count=1: the whole batch, not each replica, has to match the data's statistics.
            share = batch_norm.share_of(mask, axes.data_axis(), None if mask is None else len(mask), 1)
            means, variances, count = batch_norm.statistics(x, axis, share, fast=False, mask=own)
            distance = _norm(means[0] - mean) + _norm(variances[0] - var)
            distances.append(jnp.where(jnp.max(count) > 0, distance, 0))

        token = _watching.set(watch)
        try:
            with nn.intercept_methods(functools.partial(_intercept, watch)):
                outputs, state = model.apply(variables, batch, key=key, train=False)
        finally:
            _watching.reset(token)
        if not distances:
            raise ValueError(
                "with_batch_stat_distance: expected a model with BatchNorms, found none of Flax. Wrap an nnx module as "
                "in adapters.nnx(wrappers.track_batch_stats(module)). For a model without BatchNorms use a method that "
                "does not need them, such as dafl."
            )
        rows = batches.batch_size(batch)
        total = jnp.broadcast_to(functools.reduce(jnp.add, distances), (rows,))
        return add_outputs("with_batch_stat_distance", outputs, {name: total}), state

    return Model(model.init, apply)


def track_batch_stats(module: Any) -> Any:
    """Makes the BatchNorms of an nnx module visible to `with_batch_stat_distance`.

    Args:
      module: a module or its constructor, as for `jaxkd.adapters.nnx`. It is copied.

    Returns:
      A module of the same structure and weights, or a constructor of one.

    >>> from jaxkd import adapters
    >>> norm = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
    >>> model = with_batch_stat_distance(adapters.nnx(track_batch_stats(norm), inputs="x"))
    >>> batch = {"x": jnp.array([[3.0], [5.0]])}
    >>> model.apply(adapters.variables(norm), batch, key=None, train=False)[0]["batch_statistics"]
    Array([4., 4.], dtype=float32)
    """
    if not isinstance(module, nnx.Module):
        return lambda rngs: track_batch_stats(module(rngs))
    copy = nnx.clone(module)
    for _, node in nnx.iter_graph(copy):
        if isinstance(node, nnx.BatchNorm):
            node.__class__ = _watched_kind(type(node))
    return copy


@functools.cache  # nnx compares the structures of modules by their types, so each class gets one subclass
def _watched_kind(kind: Any) -> Any:
    def call(self: Any, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Any:
        watch = _watching.get()
        if watch is not None:
            watch(x, self.axis, mask, self.mean[...], self.var[...])
        return kind.__call__(self, x, use_running_average=use_running_average, mask=mask)

    return type(kind.__name__, (kind,), {"__call__": call})


def _intercept(watch: _Watch, next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Shows the inputs of linen's BatchNorms to the observer."""
    if (call := batch_norm_call(args, kwargs, context)) is not None:
        running = context.module.variables["batch_stats"]
        watch(call["x"], context.module.axis, call.get("mask"), running["mean"], running["var"])
    return next_fun(*args, **kwargs)


def _norm(x: Array) -> Array:
    """Euclidean norm, whose gradient at 0 is 0 instead of NaN."""
    square = jnp.sum(x**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
