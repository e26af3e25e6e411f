"""The compiled pieces of a run: one streamed step, a chunk of resident steps, an evaluation.

Each returns its metrics packed into one array, so that the host fetches those of many steps with a single transfer, and
can fetch them late: it never waits for a step that it has just sent off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd.training.packed import Packed, pack
from jaxkd.types import Array, Batch, Metrics, PyTree, TrainState

__all__ = ["Packed", "StepProgram", "evaluate_batch", "evaluate_resident"]
__all__ += ["gather_batch", "pack", "run_chunk", "run_step"]

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Evaluate = Callable[[TrainState, Batch], Metrics]
Gather = Callable[[PyTree, Array], Batch]


# A program is found again by the functions it was made from, so that a second fit of the same distiller compiles
# nothing. The caches are small because a `gather` may be a method of an input, which then keeps its arrays alive.


class StepProgram(NamedTuple):
    """One step on a given batch.

    Attributes:
      start: ``(state, batch, length) -> window``, where the metrics of the last ``length`` steps will be.
      run: ``(state, window, batch) -> (state, window)``, compiled; the state is donated. The metrics come last in the
        window, ``[length, 2, names]``, and the oldest fall out. To fetch an array costs the host as much as it costs it
        to send off a small step; like this there is one array for many steps.
    """

    start: Callable[[TrainState, Batch, int], Packed]
    run: Callable[[TrainState, Packed, Batch], tuple[TrainState, Packed]]


@functools.lru_cache(maxsize=4)
def run_step(step: Step) -> StepProgram:
    """One step on a given batch.

    Args:
      step: a distiller's.

    Returns:
      Its two functions. The step is traced once for both.
    """

    @jax.jit
    def one_step(state: TrainState, batch: Batch) -> tuple[TrainState, Packed]:
        state, metrics = step(state, batch)
        return state, pack(metrics)

    def start(state: TrainState, batch: Batch, length: int) -> Packed:
        packed = one_step.eval_shape(state, batch)[1]
        # Beside the state, or the first step would be compiled for a window that lies elsewhere than the later ones.
        sharding = jax.tree.leaves(state)[0].sharding
        replicated = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
        shape = (length, *packed.array.shape)
        return Packed(jax.jit(lambda: jnp.zeros(shape), out_shardings=replicated)(), packed.names)

    def run(state: TrainState, window: Packed, batch: Batch) -> tuple[TrainState, Packed]:
        state, packed = one_step(state, batch)
        values = jnp.concatenate([window.array[1:], packed.array[None]])
        return state, Packed(values, packed.names)

    return StepProgram(start, jax.jit(run, donate_argnums=0))


@functools.lru_cache(maxsize=4)
def gather_batch(gather: Gather) -> Callable[[PyTree, Array], Batch]:
    """One batch of resident data: the first, from which a state is made, and any that is asked for again.

    Args:
      gather: ``(arrays, step) -> batch``, a resident input's.

    Returns:
      The same, compiled. JAX alone would forget it with the bound method, and every fit would compile it again.
    """
    return jax.jit(gather)


@functools.lru_cache(maxsize=4)
def run_chunk(step: Step, gather: Gather) -> Callable[..., tuple[TrainState, Packed]]:
    """Several steps on resident data as one dispatch; the state is donated.

    Args:
      step: a distiller's.
      gather: ``(arrays, step) -> batch``, a resident input's.

    Returns:
      The compiled ``(state, arrays, first, *, length) -> (state, packed metrics [length, 2, names])``. It is compiled
      once for each length. The arrays are an argument: closed over, they would be copied into every program.
    """

    def chunk(state: TrainState, arrays: PyTree, first: Array, *, length: int) -> tuple[TrainState, Packed]:
        def one_step(state: TrainState, number: Array) -> tuple[TrainState, Packed]:
            state, metrics = step(state, gather(arrays, number))
            return state, pack(metrics)

        if length == 1:  # A loop of one round is one to XLA too, which on a CPU slows convolutions down many times.
            state, packed = one_step(state, first)
            return state, Packed(packed.array[None], packed.names)
        return jax.lax.scan(one_step, state, first + jnp.arange(length, dtype=jnp.int32))

    return jax.jit(chunk, static_argnames="length", donate_argnums=0)


@functools.lru_cache(maxsize=4)
def evaluate_batch(evaluate: Evaluate) -> Callable[[TrainState, Batch], Packed]:
    """Metrics of one given batch.

    Args:
      evaluate: a distiller's.

    Returns:
      The compiled ``(state, batch) -> packed metrics``.
    """
    return jax.jit(lambda state, batch: pack(evaluate(state, batch)))


@functools.lru_cache(maxsize=8)
def evaluate_resident(evaluate: Evaluate, gather: Gather) -> Callable[..., Packed]:
    """Metrics of every batch of resident data, as one dispatch.

    Args:
      evaluate: a distiller's.
      gather: ``(arrays, step) -> batch``, a resident input's.

    Returns:
      The compiled ``(state, arrays, *, length) -> packed metrics [length, 2, names]``.
    """

    def chunk(state: TrainState, arrays: PyTree, *, length: int) -> Packed:
        def one_batch(_: None, number: Array) -> tuple[None, Packed]:
            return None, pack(evaluate(state, gather(arrays, number)))

        return jax.lax.scan(one_batch, None, jnp.arange(length, dtype=jnp.int32))[1]

    return jax.jit(chunk, static_argnames="length")
