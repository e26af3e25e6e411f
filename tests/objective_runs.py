"""Runs an objective on one device or several: value, gradients, new state and metrics, for comparison."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd import Context, Mean, ObjectiveVars

AXIS = "data"
KEY = jax.random.key(5)
PLACES = [("pmap", 1), ("pmap", 2), ("shard_map", 8), ("shard_map, unchecked", 4), ("jit", 8)]


class Found(NamedTuple):
    """Results of `run`, with divided metrics."""

    value: Any
    params: Any  # gradient of the objective's parameters
    student: Any  # gradient of the student's outputs
    state: Any
    metrics: Any


def context(arrays, axis_name=None):
    return Context(arrays["student"], arrays["teacher"], arrays["batch"], jnp.int32(3), axis_name)


def initialize(objective, arrays, seed=0):
    return objective.init(jax.random.key(seed), jax.eval_shape(lambda: context(arrays)))


def run(objective, variables, arrays, key=KEY) -> Found:
    """Runs an objective, compiled once per objective, structure and shape, and again under another precision."""
    return _compiled(objective, key is None)(variables, arrays, KEY if key is None else key)


@functools.cache
def _compiled(objective, evaluates):
    return jax.jit(lambda variables, arrays, key: _one(objective, variables, arrays, None if evaluates else key))


def _one(objective, variables, arrays, key):
    found = _run(objective, variables, arrays, key, None)
    return found._replace(metrics=_divided(found.metrics))


def on_devices(objective, way, count, key=KEY, *, split_state=lambda path: False):
    """Returns `run` as a train step on several devices does it, ``(variables, arrays) -> Found``.

    Each device differentiates its share, then gradients and state are averaged. ``jit`` is one program for the global
    batch, which the compiler partitions; state whose path `split_state` accepts is sharded by rows.
    """
    devices = jax.devices()[:count]
    mesh = Mesh(np.array(devices), (AXIS,))
    whole, split = PartitionSpec(), PartitionSpec(AXIS)

    def local(variables, arrays):
        params = variables.params
        if way == "shard_map":
            params = jax.lax.pcast(params, AXIS, to="varying")
        found = _run(objective, ObjectiveVars(params, variables.state), arrays, key, AXIS)
        shared = jax.tree.map(_average, (found.value, found.params, found.state))
        # The value is a mean over devices, so each share's gradient of its features is `count` times too large.
        own = jax.tree.map(lambda g: g / count, found.student)
        return (*shared, _divided(jax.lax.psum(found.metrics, AXIS))), own

    def collected(shared, own):
        value, params, state, metrics = shared
        return Found(value, params, own, state, metrics)

    if way == "pmap":
        mapped = jax.pmap(local, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, 0), devices=devices)

        def sliced(variables, arrays):
            shared, own = mapped(variables, jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), arrays))
            return collected(shared, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), own))

        return sliced
    if way.startswith("shard_map"):
        specs = {"in_specs": (whole, split), "out_specs": (whole, split), "check_vma": "unchecked" not in way}
        mapped = jax.jit(jax.shard_map(local, mesh=mesh, **specs))
        return lambda variables, arrays: collected(*mapped(variables, arrays))

    def layout(path, x):
        return NamedSharding(mesh, PartitionSpec(AXIS, None) if split_state(path) else whole)

    steps: dict[Any, Any] = {}

    def placed(variables, arrays):
        structure = jax.tree.structure((variables, arrays))
        if structure not in steps:
            there = jax.tree_util.tree_map_with_path(layout, variables)
            replicated, divided = NamedSharding(mesh, whole), NamedSharding(mesh, split)
            steps[structure] = jax.jit(
                lambda variables, arrays: _one(objective, variables, arrays, key),
                in_shardings=(there, divided),
                out_shardings=Found(replicated, replicated, divided, there.state, replicated),
            )
        return steps[structure](variables, arrays)

    return placed


def _run(objective, variables, arrays, key, axis_name):
    def value(params, student):
        out = objective.apply(params, variables.state, context({**arrays, "student": student}, axis_name), key)
        return out.value, out

    (value, out), gradients = jax.value_and_grad(value, (0, 1), has_aux=True)(variables.params, arrays["student"])
    return Found(value, *gradients, out.state, dict(out.metrics))


def _average(x):
    return (jax.lax.pmean if jnp.issubdtype(x.dtype, jnp.inexact) else jax.lax.pmax)(x, AXIS)


def _divided(metrics):
    return {name: m.sum / jnp.maximum(m.count, 1) for name, m in metrics.items() if isinstance(m, Mean)}


def double(tree):
    """Casts floating-point arrays to float64, within ``jax.enable_x64(True)``."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def rows(tree, keep):
    return jax.tree.map(lambda x: x[np.asarray(keep)], tree)


def spoiled(tree, keep, garbage):
    """Fills the masked rows of all floating-point arrays with garbage."""

    def spoil(x):
        if not np.issubdtype(x.dtype, np.floating):
            return x
        return np.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, garbage).astype(x.dtype)

    return jax.tree.map(spoil, tree)
