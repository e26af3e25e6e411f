"""Adapter of Flax nnx modules, with masked BatchNorm statistics by replica."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from jaxkd._core import batch_norm, checks
from jaxkd._core.arrays.shardings import automatic
from jaxkd._core.model_calls import (
    Flag,
    Inputs,
    arguments,
    check_modes,
    collect,
    computing_in,
    is_held,
    mode_flags,
    name_outputs,
    share_of,
)
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables


def nnx_module(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    *,
    taps: Mapping[str, str] | None = None,
    inputs: Inputs = "image",
    outputs: Callable[[Any], Any] | None = None,
    flag: Flag = None,
) -> Model:
    """Wraps a Flax nnx module as a `Model`; exported as `jaxkd.adapters.nnx`.

    Training mode reaches the module through its own ``train()`` and ``eval()``, and through a flag of its ``__call__``
    if it has one, under a usual name (see `linen`) or as ``flag``. The given module is never changed: each call works
    on a copy. In training, the random streams of the copy (dropout) are set from the step's key, so that a step is a
    function of its key. BatchNorm normalizes each replica by its unmasked examples.

    Args:
      module: a module, whose weights ``init`` then returns; or a constructor ``rngs -> module``, which ``init`` calls
        with its key, so that each seed has weights of its own.
      taps: names for submodules' outputs, such as ``{"stage2": "stages/1"}``; see `jaxkd.adapters`.
      inputs: entries of the batch that the module is called with.
      outputs: function from the module's result to a mapping of names to arrays; an array alone is named ``logits``.
      flag: the training flag of ``__call__``, if it has another name, as for `linen`.

    Returns:
      A `Model` with ``Variables(params, state)``, nested dicts of the `nnx.Param` and of all other variables.

    Raises:
      TypeError: the module is not one of nnx.
      ValueError: ``apply`` raises it for a tap or an input that does not exist, and lists those that do; and if no flag
        reaches Dropouts and BatchNorms, which would always or never train.

    >>> import jax.numpy as jnp
    >>> class Net(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.hidden, self.out = nnx.Linear(5, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
    ...     def __call__(self, x):
    ...         return self.out(nnx.relu(self.hidden(x)))
    >>> model = nnx_module(Net, taps={"hidden": "hidden"}, inputs="x")
    >>> batch = {"x": jnp.ones((3, 5))}
    >>> variables = model.init(jax.random.key(0), batch)
    >>> out, _ = model.apply(variables, batch, key=None, train=False)
    >>> {name: value.shape for name, value in out.items()}
    {'logits': (3, 2), 'hidden': (3, 4)}
    """
    if not isinstance(module, nnx.Module) and (not callable(module) or hasattr(module, "apply")):
        raise TypeError(
            "nnx, module: expected an nnx.Module or a function from nnx.Rngs to one, such as its class, got "
            f"{checks.kind(module)}. A module of flax.linen is for jaxkd.adapters.linen."
        )
    taps = dict(taps or {})
    abstract = module if isinstance(module, nnx.Module) else nnx.eval_shape(lambda: module(nnx.Rngs(0)))
    parts: Any = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    graph, params_like, streams_like, state_like = parts

    def init(key: Array, batch: Batch) -> Variables:
        del batch
        made: Variables = automatic(variables_of(module if isinstance(module, nnx.Module) else module(nnx.Rngs(key))))
        return made

    def rebuild(variables: Variables, key: Array | None, train: bool) -> nnx.Module:
        params, state, streams = jax.tree.map(lambda x: x, (params_like, state_like, streams_like))  # unshared trees
        nnx.replace_by_pure_dict(params, variables.params)
        nnx.replace_by_pure_dict(state, variables.state)
        nnx.replace_by_pure_dict(streams, _streams(streams, jax.random.key(0) if key is None else key))
        copy = nnx.merge(graph, params, streams, state)
        copy.train() if train else copy.eval()
        return copy

    def run(variables: Variables, batch: Batch, key: Array | None, train: bool, tapped: bool) -> tuple[Any, Any, Any]:
        copy = rebuild(variables, key, train)
        values, flags = arguments(inputs, batch), mode_flags(copy.__call__, train, flag)
        layers: dict[str, bool] = {}
        _take_over(copy, share_of(batch, values) if train else None, layers)
        if tapped:
            call = nnx.capture(copy, nnx.Intermediate, method_outputs=nnx.Intermediate)
            result, intermediates = call(*values, **flags)
            recorded = nnx.to_pure_dict(intermediates)
        else:
            result, recorded = copy(*values, **flags), {}
        check_modes(layers, copy.__call__, train, flag)
        return result, recorded, variables_of(copy).state

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        result, recorded, state = run(variables, batch, key, train, bool(taps))
        return name_outputs(outputs(result) if outputs else result, collect(taps, recorded)), (
            state if train else variables.state
        )

    return Model(init, apply)


def variables_of(module: nnx.Module | nnx.State) -> Variables:
    """Returns a module's weights as nested dicts, without its random streams.

    ``params`` holds each `nnx.Param`, and ``state`` all other variables. A module's `nnx.State` is accepted as well.

    >>> jax.tree.map(lambda x: x.shape, variables_of(nnx.Linear(2, 3, rngs=nnx.Rngs(0))).params)
    {'bias': (3,), 'kernel': (2, 3)}
    """
    everything: Any = module if isinstance(module, nnx.State) else nnx.state(module)
    params, _, _, state = nnx.split_state(everything, nnx.Param, nnx.RngState, nnx.Intermediate, ...)
    return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(state))


def _streams(like: Any, key: Array) -> Any:
    """Returns random streams like a module's own, with fresh keys and counts of 0."""
    numbers = iter(range(1 << 30))

    def fresh(leaf: Any) -> Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            own = jax.random.fold_in(key, next(numbers))
            return jax.random.split(own, leaf.shape) if leaf.shape else own
        return jax.numpy.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(fresh, nnx.to_pure_dict(like))


def _take_over(module: nnx.Module, share: batch_norm.Share | None, layers: dict[str, bool]) -> None:
    """Makes the BatchNorms of a copied module normalize by replica.

    Flax nnx has no method interceptors, so each BatchNorm of the copy gets a subclass of its class. The copy belongs to
    one call of ``apply``, so the user's module keeps its classes.
    """
    compute = computing_in.get()

    def watched(kind: Any, name: str, held: bool) -> Any:
        def call(self: Any, inputs: Any, *, deterministic: bool | None = None, **options: Any) -> Any:
            if held:
                return inputs
            infers = self.deterministic if deterministic is None else deterministic
            if isinstance(infers, bool) and self.rate != 0:
                layers[name] = not infers
            return kind.__call__(self, inputs, deterministic=deterministic, **options)

        return type(kind.__name__, (kind,), {"__call__": call})

    def subclass(kind: Any, name: str, held: bool) -> Any:
        def call(self: Any, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Any:
            infer = self.use_running_average if use_running_average is None else use_running_average
            infer = infer or held
            if isinstance(infer, bool) and not held:
                layers[name] = not infer
            own = None if share is None or infer else batch_norm.of_layer(share, self)
            if own is None:
                result = kind.__call__(self, x, use_running_average=infer, mask=mask)
            else:
                result = by_replicas(self, x, mask, own)
            # Unlike linen's, nnx's float32 running statistics would promote the output and all later layers.
            narrow = compute is not None and self.dtype is None and x.dtype == compute
            return result.astype(compute) if narrow else result

        def by_replicas(self: Any, x: Array, mask: Any, share: batch_norm.Share) -> Array:
            mean, var, count = batch_norm.statistics(x, self.axis, share, fast=self.use_fast_variance, mask=mask)

            def normalize_by(x: Array, mean: Array, var: Array) -> Array:
                layer = nnx.clone(self)  # cloned under this vmap: nnx refuses to change variables of an outer trace
                layer.mean[...], layer.var[...] = mean, var
                result: Array = kind.__call__(layer, x, use_running_average=True)
                return result

            result = batch_norm.by_replica(normalize_by, x, mean, var)
            self.mean[...] = batch_norm.running(self.mean[...], mean, self.momentum, count, share.pace)
            self.var[...] = batch_norm.running(self.var[...], var, self.momentum, count, share.pace)
            return result

        return type(kind.__name__, (kind,), {"__call__": call})

    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.BatchNorm | nnx.Dropout):
            name = "/".join(map(str, path))
            node.__class__ = (subclass if isinstance(node, nnx.BatchNorm) else watched)(type(node), name, is_held(path))
