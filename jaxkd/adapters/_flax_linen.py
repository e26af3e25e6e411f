"""Adapter of Flax linen modules, with masked BatchNorm statistics by replica."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxkd._core import batch_norm, checks
from jaxkd._core.model_calls import (
    Flag,
    Inputs,
    arguments,
    check_modes,
    collect,
    is_held,
    mode_flags,
    name_outputs,
    normalize,
    share_of,
    without_layer,
)
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables

_RECORD = "intermediates"
_SCAN_HINT = "A module under nn.scan is listed if the scan has variable_axes={'intermediates': 0, ...}."


def linen(
    module: nn.Module,
    *,
    taps: Mapping[str, str] | None = None,
    inputs: Inputs = "image",
    outputs: Callable[[Any], Any] | None = None,
    flag: Flag = None,
) -> Model:
    """Wraps a Flax linen module as a `Model`, without editing it.

    Training mode reaches the module through whichever of ``train``, ``training``, ``is_training``, ``deterministic``
    and ``use_running_average`` its ``__call__`` accepts, or through ``flag``. In training, all collections but
    ``params`` are mutable and return as the new state, and a key for ``dropout`` (and, by Flax's rule, every other
    stream) is derived from the step's key. Inference leaves the state unchanged. BatchNorm normalizes each replica by
    its unmasked examples.

    Args:
      module: the unbound module.
      taps: names for submodules' outputs, such as ``{"stage2": "ResNetStage_1"}``; see `jaxkd.adapters`. The outputs of
        a module under `nn.scan` are stacked ``[layers, batch, ...]``, and ``"blocks/dense[2]"`` is that of one layer;
        the scan needs ``variable_axes={"intermediates": 0, ...}``.
      inputs: entries of the batch that the module is called with.
      outputs: function from the module's result to a mapping of names to arrays; an array alone is named ``logits``.
      flag: the module's training flag, if it has another name: the argument that is True in training, such as
        ``"enable_dropout"``, or a function from ``train`` to arguments, such as
        ``lambda train: {"mode": "train" if train else "eval"}``.

    Returns:
      A `Model` with ``Variables(params, {other collections})``. Boxes of parameters (`nn.with_partitioning`) are
      removed; the ``rules`` of `jaxkd.parallel.shard` place parameters by their paths.

    Raises:
      TypeError: the module is not one of linen.
      ValueError: ``apply`` raises it for a tap or an input that does not exist, and lists those that do. ``init``
        raises it if no flag reaches the module's Dropouts and BatchNorms, which would always or never train.

    >>> import jax.numpy as jnp
    >>> model = linen(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]), taps={"hidden": "layers_0"}, inputs="x")
    >>> batch = {"x": jnp.ones((3, 5))}
    >>> variables = model.init(jax.random.key(0), batch)
    >>> out, _ = model.apply(variables, batch, key=None, train=False)
    >>> {name: value.shape for name, value in out.items()}
    {'logits': (3, 2), 'hidden': (3, 4)}
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"linen, module: expected an instance of a flax.linen.Module, such as Net(), got {checks.kind(module)}. "
            "Other libraries have their own adapters: jaxkd.adapters.nnx and plain."
        )
    taps = dict(taps or {})
    wanted = {normalize(without_layer(spec))[0] for spec in taps.values()}

    def init(key: Array, batch: Batch) -> Variables:
        flags = mode_flags(module.__call__, False, flag)
        params_key, dropout_key = jax.random.split(key)
        keys = {"params": params_key, "dropout": dropout_key}
        with _watched(module, False, flag):
            variables = variables_of(module.init(keys, *arguments(inputs, batch), **flags))
        # Collections that a model sows into grow with each pass; they are outputs, so the state leaves them out.
        after = jax.eval_shape(lambda v, b: run(v, b, key, True, False)[1], variables, dict(batch))
        structure: Any = jax.tree.structure
        state = {k: v for k, v in variables.state.items() if structure(v) == structure(after[k])}
        return variables._replace(state=state)

    def run(variables: Variables, batch: Batch, key: Array | None, train: bool, record: Any) -> tuple[Any, Any]:
        collections = {"params": variables.params, **variables.state}
        mutable = (list(variables.state) if train else []) + ([_RECORD] if record else [])
        keys = {} if key is None else dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
        values = arguments(inputs, batch)
        replicas = nn.intercept_methods(_by_replicas(share_of(batch, values))) if train else contextlib.nullcontext()
        with replicas, _watched(module, train, flag):
            result, changed = module.apply(
                collections,
                *values,
                rngs=keys,
                mutable=mutable,
                capture_intermediates=record,
                **mode_flags(module.__call__, train, flag),
            )
        return result, changed

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        tapped = (lambda mdl, method: method == "__call__" and "/".join(mdl.path) in wanted) if taps else False
        result, changed = run(variables, batch, key, train, tapped)
        intermediates = changed.get(_RECORD, {})
        state = {name: changed.get(name, old) for name, old in variables.state.items()}

        def everything() -> Any:
            # Called for the error of a missing tap alone: an abstract pass that records every submodule's output.
            return jax.eval_shape(lambda v, b: run(v, b, key, False, True)[1], variables, batch)[_RECORD]

        tapped_outputs = collect(taps, intermediates, everything, hint=_SCAN_HINT)
        return name_outputs(outputs(result) if outputs else result, tapped_outputs), state

    return Model(init, apply)


def variables_of(collections: Mapping[str, Any]) -> Variables:
    """Converts linen's dict of collections to `Variables`.

    >>> variables_of({"params": {"w": 1}, "batch_stats": {"mean": 0}})
    Variables(params={'w': 1}, state={'batch_stats': {'mean': 0}})
    """
    collections = unboxed(dict(collections))
    return Variables(
        collections.get("params", {}), {k: v for k, v in collections.items() if k not in ("params", _RECORD)}
    )


def unboxed(tree: PyTree) -> PyTree:
    """Removes the boxes of parameters, such as those of `nn.with_partitioning`.

    >>> unboxed({"w": nn.Partitioned(1, names=("data",))})
    {'w': 1}
    """

    def leaf(x: Any) -> Any:
        if isinstance(x, nn.Partitioned):
            return x.value  # its `unbox` would place the array on the mesh that is set
        return x.unbox() if isinstance(x, nn.meta.AxisMetadata) else x

    is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)  # noqa: E731
    if not any(map(is_box, jax.tree.leaves(tree, is_leaf=is_box))):
        return tree
    return jax.tree.map(leaf, tree, is_leaf=is_box)


def batch_norm_call(args: Any, kwargs: Any, context: Any) -> dict[str, Any] | None:
    """Returns the arguments of an intercepted BatchNorm call, else None.

    The arguments of an `nn.intercept_methods` interceptor are bound to the names of `nn.BatchNorm`.
    """
    if not isinstance(context.module, nn.BatchNorm) or context.method_name != "__call__":
        return None
    return inspect.signature(nn.BatchNorm.__call__).bind(context.module, *args, **kwargs).arguments


@contextlib.contextmanager
def _watched(module: nn.Module, train: bool, flag: Flag) -> Iterator[None]:
    """Checks, after a pass, that Dropouts and BatchNorms were in its mode."""
    layers: dict[str, bool] = {}

    def watch(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, nn.Dropout | nn.BatchNorm):
            name = "use_running_average" if isinstance(layer, nn.BatchNorm) else "deterministic"
            call = inspect.signature(type(layer).__call__).bind(layer, *args, **kwargs).arguments
            infers = getattr(layer, name) if call.get(name) is None else call[name]
            if is_held(layer.path):
                if isinstance(layer, nn.Dropout):
                    return call["inputs"]
                # A clone, because Flax refuses a mode that is given twice, by the layer and by the call.
                return layer.clone(parent=None, use_running_average=True).apply(dict(layer.variables), call["x"])
            if isinstance(infers, bool) and getattr(layer, "rate", 1) != 0:
                layers["/".join(layer.path)] = not infers
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(watch):
        yield
    check_modes(layers, module.__call__, train, flag, fields=list(type(module).__dataclass_fields__))


def _by_replicas(share: batch_norm.Share) -> Any:
    """Builds the interceptor that normalizes training-mode BatchNorms by replica.

    It replaces the call by three parts: the statistics of the share, Flax's own layer in inference mode on these
    statistics (so that dtype, scale, bias and subclasses behave as in Flax), and the update of the running statistics.
    """

    def interceptor(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, call = context.module, batch_norm_call(args, kwargs, context)
        if call is None or is_held(module.path):
            return next_fun(*args, **kwargs)
        infer = call.get("use_running_average") if module.use_running_average is None else module.use_running_average
        own = None if infer else batch_norm.of_layer(share, module)
        if own is None:
            return next_fun(*args, **kwargs)
        x = call["x"]
        mean, var, count = batch_norm.statistics(
            x, module.axis, own, fast=module.use_fast_variance, mask=call.get("mask")
        )
        collections = dict(module.variables)
        # `by_replica` runs the layer under vmap, where a module bound to the outer pass would leak tracers.
        unbound = module.clone(parent=None, use_running_average=True)

        def normalize_by(x: Array, mean: Array, var: Array) -> Array:
            result: Any = unbound.apply({**collections, "batch_stats": {"mean": mean, "var": var}}, x)
            return result

        result = batch_norm.by_replica(normalize_by, x, mean, var)
        for name, new in (("mean", mean), ("var", var)):
            old = collections["batch_stats"][name]
            module.put_variable("batch_stats", name, batch_norm.running(old, new, module.momentum, count, own.pace))
        return result

    return interceptor
