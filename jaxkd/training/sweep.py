"""Several runs as one: a distiller mapped over seeds and hyperparameters, trained in one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.types import Array, Batch, Distiller, Metrics, PyTree, TrainState

__all__ = ["Shared", "member", "sweep"]


class Shared(NamedTuple):
    """A teacher's state that all members of a sweep have in common, and that is there once."""

    value: PyTree


def sweep(make: Callable[..., Distiller], /, *, batch_axis: int | None = None, **settings: Any) -> Distiller:
    """A distiller that is n distillers, one for each value of the settings: `jax.vmap` over all of them.

    Each member is what ``make(**values)`` gives for its values, trained on the same batches. One program is compiled,
    once; small students that leave a device idle then cost little more together than one of them. A frozen teacher
    whose state is the same for all is kept once, as a `Shared`, and evaluated once per step.

    Args:
      make: called with one scalar for each setting, while tracing: temperatures, weights, learning rates, anything that
        enters by arithmetic. What decides a shape or a branch cannot be swept.
      batch_axis: None for batches that all members share; 0 for training batches that begin with an axis of members,
        ``[n, batch, ...]``, as of an input whose gather is
        ``jax.vmap(lambda seed: resident.gather(arrays, step, seed=seed))(seeds)``: a data order for each member.
        Evaluations share their batches.
      **settings: ``[n]`` values each.

    Returns:
      A `Distiller`. ``init`` takes one key, which every member begins with, or ``[n]`` keys, for seeds. Metrics are
      ``[n]``, which `jaxkd.training.fit` logs as ``loss[0]``, ``loss[1]``, ... `member` takes one run out of the state.

    Raises:
      ValueError: the settings are not all ``[n]``; and from ``init``, if the keys are not as many, or nothing is swept.

    >>> import jaxkd, optax
    >>> model = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> teacher = jaxkd.teachers.frozen(model, jaxkd.Variables(jnp.ones((2, 3)).at[0, 0].set(5.0)))
    >>> def make(temperature, rate):
    ...     kl = jaxkd.losses.soft_target_kl
    ...     objective = jaxkd.term(kl, "student/logits", "teacher/logits", temperature=temperature)
    ...     return jaxkd.distill(model, teacher, objective, optimizer=optax.sgd(rate))
    >>> kd = sweep(make, temperature=[1.0, 2.0, 4.0], rate=[0.1, 0.1, 0.2])
    >>> batch = {"x": jnp.ones((4, 2))}
    >>> state, metrics = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> metrics["loss"].sum.shape, state.student.params.shape, member(state, 2).student.params.shape
    ((3,), (3, 2, 3), (2, 3))
    """
    if batch_axis not in (None, 0):
        raise ValueError(f"sweep, batch_axis: expected None, for shared batches, or 0, got {batch_axis}.")
    values = {name: _scalars(name, value) for name, value in settings.items()}
    sizes = {name: len(value) for name, value in values.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"sweep: expected as many values of each setting, got {sizes}. A grid is written out.")
    size = next(iter(sizes.values()), None)

    def mapped(function: Callable[..., Any], *in_axes: Any, out_axes: Any) -> Callable[..., Any]:
        """A function of a member's distiller and more, of all members."""

        def one(values: dict[str, Array], *arguments: Any) -> Any:
            return function(make(**values), *arguments)

        return lambda *arguments: jax.vmap(one, (0, *in_axes), out_axes)(values, *arguments)

    def stepped(shared: bool) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        def one(kd: Distiller, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            new, metrics = kd.step(state, batch)
            return new, dict(metrics.items())

        return mapped(one, _axes(shared), batch_axis, out_axes=(_axes(shared), 0))

    def init(key: Array, batch: Batch) -> TrainState:
        several = _several(key, size)
        shapes = jax.eval_shape(lambda batch: batch, dict(batch))
        one_batch = shapes if batch_axis is None else jax.eval_shape(lambda b: jax.tree.map(lambda x: x[0], b), shapes)

        def started(shared: bool) -> Callable[[Array], TrainState]:
            return mapped(lambda kd, key: kd.init(key, one_batch), 0 if several else None, out_axes=_axes(shared))

        try:  # `jax.vmap` refuses to return as one what differs between the members
            jax.eval_shape(stepped(True), jax.eval_shape(started(True), key), shapes)
        except ValueError:
            return started(False)(key)
        state = started(True)(key)
        return state._replace(teacher=Shared(state.teacher))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        inner, shared = _opened(state)
        new, metrics = stepped(shared)(inner, batch)
        return (new._replace(teacher=Shared(new.teacher)) if shared else new), metrics

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        inner, shared = _opened(state)

        def one(kd: Distiller, state: TrainState, batch: Batch) -> Metrics:
            return dict(kd.evaluate(state, batch).items())

        return mapped(one, _axes(shared), None, out_axes=0)(inner, batch)

    return Distiller(init, step, evaluate)


def member(state: TrainState, i: int) -> TrainState:
    """One run of a sweep, as the distiller that ``make`` gives for its values knows it.

    Args:
      state: of a distiller made by `sweep`.
      i: which one, from 0.

    Returns:
      An ordinary `TrainState`.

    Raises:
      IndexError: there are not so many.

    >>> from jaxkd.types import LossVars, Variables
    >>> parts = Variables(jnp.array([1.0, 2.0])), Shared(jnp.ones(())), LossVars(), {}
    >>> member(TrainState(*parts, jnp.int32(3), jax.random.split(jax.random.key(0))), 1)[:2]
    (Variables(params=Array(2., dtype=float32), state={}), Array(1., dtype=float32))
    """
    inner, shared = _opened(state)
    size = inner.key.shape[0]
    if not 0 <= i < size:
        raise IndexError(f"member: expected a number from 0 to {size - 1}, got {i}.")

    def pick(axis: int | None, part: PyTree) -> PyTree:
        return part if axis is None else jax.tree.map(lambda x: x[i], part)

    return TrainState(*map(pick, _axes(shared), inner))


def _axes(shared: bool) -> Any:
    """Which parts of a state have an axis of members. They all take the same steps, so the step's number is one."""
    axes = {"student": 0, "teacher": None if shared else 0, "loss": 0, "opt_state": 0, "step": None, "key": 0}
    return TrainState(**axes)  # type: ignore[arg-type]


def _opened(state: TrainState) -> tuple[TrainState, bool]:
    if isinstance(state.teacher, Shared):
        return state._replace(teacher=state.teacher.value), True
    return state, False


def _several(key: Array, size: int | None) -> bool:
    """Whether these are ``[n]`` keys rather than one."""
    shape = key.shape if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key.shape[:-1]
    if len(shape) > 1 or (size is None and not shape) or (shape and size not in (None, shape[0])):
        expected = "one key for each member, [n]" if size is None else f"one key, or one for each member, [{size}]"
        raise ValueError(f"sweep, key: expected {expected}, got {list(shape) if shape else 'one key'}.")
    return bool(shape)


def _scalars(name: str, value: Any) -> Array:
    array = jnp.asarray(value)
    if array.ndim != 1 or not len(array):
        raise ValueError(
            f"sweep, {name}: expected one number for each member, [n], got {list(array.shape)}. What all members share "
            "belongs into make."
        )
    return array
