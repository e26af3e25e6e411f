"""Compiled programs of a run: a step, a chunk of resident steps, an evaluation.

Each program returns its metrics packed into one array, so that the host fetches the metrics of many steps with a
single transfer, and late: it never waits for a step that it has only just dispatched.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd import parallel
from jaxkd._core.batches import is_unseen_metric
from jaxkd.metrics import Packed, compute, pack
from jaxkd.training._inputs import is_resident
from jaxkd.training._logs import refuse_unseen
from jaxkd.types import Array, Batch, Distiller, Metrics, PyTree, TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Evaluate = Callable[[TrainState, Batch], Metrics]
Gather = Callable[[PyTree, Array], Batch]

# Batches dispatched ahead of the device occupy its memory until it evaluates them.
_IN_FLIGHT = 16

# Programs are cached by the functions they are made from, so that a second `fit` of the same distiller compiles
# nothing. The caches are small because a `gather` may be a method of an input, whose arrays the cache then keeps alive.


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that all programs share one trace of, for equal types.

    A run's identity needs the trace of the step and of the evaluation, which takes longer than all other parts of it;
    JAX keeps a trace by the function that `jax.jit` is given. The equations are copied into the program that calls it,
    so that this is the same program.
    """
    return jax.jit(function, inline=True)


class StepProgram(NamedTuple):
    """One compiled step on a given batch.

    Attributes:
      start: ``(state, batch, length) -> window``, an empty window for the metrics of the last ``length`` steps.
      run: ``(state, window, batch) -> (state, window)``, compiled; the state is donated. The step's metrics are
        appended to the window, ``[length, 2, names]``, and the oldest dropped. Fetching an array costs the host as much
        as dispatching a small step, so a window makes many steps share one fetch.
    """

    start: Callable[[TrainState, Batch, int], Packed]
    run: Callable[[TrainState, Packed, Batch], tuple[TrainState, Packed]]


@functools.lru_cache(maxsize=4)
def run_step(step: Step) -> StepProgram:
    """Compiles one step on a given batch; its two functions share one trace."""
    step = traced_once(step)

    @jax.jit
    def one_step(state: TrainState, batch: Batch) -> tuple[TrainState, Packed]:
        state, metrics = step(state, batch)
        return state, pack(metrics)

    def start(state: TrainState, batch: Batch, length: int) -> Packed:
        packed = one_step.eval_shape(state, batch)[1]
        # The first window has the placement that later ones will have; otherwise the first step would be compiled
        # for a placement of its own.
        sharding = jax.tree.leaves(state)[0].sharding
        replicated = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
        shape = (length, *packed.array.shape)
        return dataclasses.replace(packed, array=jax.jit(lambda: jnp.zeros(shape), out_shardings=replicated)())

    def run(state: TrainState, window: Packed, batch: Batch) -> tuple[TrainState, Packed]:
        state, packed = one_step(state, batch)
        values = jnp.concatenate([window.array[1:], packed.array[None]])
        return state, dataclasses.replace(packed, array=values)

    return StepProgram(start, jax.jit(run, donate_argnums=0))


@functools.lru_cache(maxsize=4)
def gather_batch(gather: Gather) -> Callable[[PyTree, Array], Batch]:
    """Compiles the gathering of one batch of resident data.

    `jax.jit` alone would discard the program together with the bound method, and every `fit` would compile it again.
    """
    return jax.jit(gather)


@functools.lru_cache(maxsize=4)
def run_chunk(step: Step, gather: Gather) -> Callable[..., tuple[TrainState, Packed]]:
    """Compiles several steps on resident data as one dispatch; the state is donated.

    The result is ``(state, arrays, first, *, length) -> (state, packed metrics [length, 2, names])``, compiled once for
    each length. The arrays are an argument: closed over, they would be copied into every program.
    """
    step = traced_once(step)

    def chunk(state: TrainState, arrays: PyTree, first: Array, *, length: int) -> tuple[TrainState, Packed]:
        def one_step(state: TrainState, number: Array) -> tuple[TrainState, Packed]:
            state, metrics = step(state, gather(arrays, number))
            return state, pack(metrics)

        # XLA keeps a scan of length 1 as a loop, and on CPU runs convolutions many times slower within one.
        if length == 1:
            state, packed = one_step(state, first)
            return state, dataclasses.replace(packed, array=packed.array[None])
        return jax.lax.scan(one_step, state, first + jnp.arange(length, dtype=jnp.int32))

    return jax.jit(chunk, static_argnames="length", donate_argnums=0)


@functools.lru_cache(maxsize=4)
def evaluate_batch(evaluate: Evaluate) -> Callable[[TrainState, Batch], Packed]:
    """Compiles the evaluation of a batch: ``(state, batch) -> packed metrics``."""
    evaluate = traced_once(evaluate)
    return jax.jit(lambda state, batch: pack(evaluate(state, batch)))


@functools.lru_cache(maxsize=8)
def evaluate_resident(evaluate: Evaluate, gather: Gather) -> Callable[..., Packed]:
    """Compiles the evaluation of all batches of resident data as one dispatch.

    The result is ``(state, arrays, *, length) -> packed metrics [length, 2, names]``.
    """
    evaluate = traced_once(evaluate)

    def chunk(state: TrainState, arrays: PyTree, *, length: int) -> Packed:
        def one_batch(_: None, number: Array) -> tuple[None, Packed]:
            return None, pack(evaluate(state, gather(arrays, number)))

        return jax.lax.scan(one_batch, None, jnp.arange(length, dtype=jnp.int32))[1]

    return jax.jit(chunk, static_argnames="length")


def evaluate(kd: Distiller, state: TrainState, data: Any) -> dict[str, float]:
    """Evaluates one pass over an input; sums and counts are divided at its end.

    Args:
      kd: distiller whose ``evaluate`` is run.
      state: state to evaluate; it is neither changed nor donated.
      data: an input. A resident input is evaluated in a single dispatch; of a streaming input, the first
        ``steps_per_epoch`` batches are taken.

    Returns:
      Means by name; NaN where the count is 0.

    Raises:
      ValueError: the input ends before ``steps_per_epoch`` batches.
      StaleCacheError: a cached teacher saw other inputs than the student.
    """
    length = data.steps_per_epoch
    if is_resident(data):
        chunk = evaluate_resident(kd.evaluate, data.gather)
        return _means([chunk(state, parallel.replicated_arrays(state, data), length=length)])
    one, take = evaluate_batch(kd.evaluate), parallel.batch_placer(kd)
    batches = data.batches()
    packed = []
    try:
        for batch in itertools.islice(batches, length):
            packed.append(one(state, take(batch)))
            packed[-1].array.copy_to_host_async()
            if len(packed) > _IN_FLIGHT:
                packed[-_IN_FLIGHT].array.block_until_ready()
    finally:
        getattr(batches, "close", lambda: None)()
    if len(packed) < length:
        raise ValueError(
            f"the input for evaluation ended after {len(packed)} batches, and its steps_per_epoch is {length}."
        )
    return _means(packed)


def _means(packed: list[Packed]) -> dict[str, float]:
    if not packed:
        return {}
    names = packed[0].names
    values = np.concatenate([np.asarray(p.array, np.float64).reshape(-1, 2, len(names)) for p in packed])
    sums = values.sum(axis=0)
    refuse_unseen(dict(zip(names, sums[0].tolist(), strict=True)), "evaluation")
    means = compute(dataclasses.replace(packed[0], array=sums))
    return {name: mean for name, mean in means.items() if not is_unseen_metric(name)}
