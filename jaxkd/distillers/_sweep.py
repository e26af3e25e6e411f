"""Sweeps over seeds and hyperparameters: several runs as one mapped program.

The state of a sweep is a `TrainState` whose arrays have a leading axis of members, except for the step number and a
frozen teacher, which would otherwise be stored and evaluated once per member. Whether a teacher can be shared is tried:
`jax.vmap` raises for an output without a member axis whose value depends on the member. `Shared` marks such a teacher
in the state, so that the axes follow from the state alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd.types import Array, Batch, Derived, Distiller, LabeledMean, Mean, Metrics, PyTree, TrainState


class Shared(NamedTuple):
    """State of a teacher that is equal for all members of a sweep, and stored once."""

    value: PyTree


def sweep(make: Callable[..., Distiller], /, *, batch_axis: int | None = None, **settings: Any) -> Distiller:
    """Returns a distiller that trains n distillers at once, one for each value.

    Each member is the distiller that ``make(**values)`` returns for its values, and all are trained on the same
    batches. One program is compiled for all of them; several small students, each of which would leave a device idle,
    then cost little more than one. A frozen teacher whose state is equal for all members is stored once, as a `Shared`,
    and evaluated once per step.

    Args:
      make: function from one traced scalar for each setting to a distiller. Settings are numbers in the computation:
        temperatures, weights, learning rates. A setting that decides a shape or a Python branch cannot be swept.
      batch_axis: None for batches that all members share; 0 for training batches with a leading axis of members,
        ``[n, batch, ...]``, as from an input whose gather is
        ``jax.vmap(lambda seed: resident.gather(arrays, step, seed=seed))(seeds)``: a data order for each member.
        Evaluation batches are always shared.
      **settings: ``[n]`` values for each setting.

    Returns:
      A `Distiller`. ``init`` takes one key, with which every member starts, or ``[n]`` keys, to sweep over seeds.
      Metrics have the shape ``[n]``, and `jaxkd.training.fit` logs them by the member's values,
      ``loss[temperature=4]``; if only keys are swept, or values are equal, with the number of the member,
      ``loss[0]``. `select_run` returns the state of one member.

    Raises:
      ValueError: the settings do not all have ``[n]`` values; from ``init``: the number of keys differs from n, or
        neither settings nor keys are swept.

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
    >>> metrics["loss"].sum.shape, state.student.params.shape, select_run(state, 2).student.params.shape
    ((3,), (3, 2, 3), (2, 3))
    """
    if batch_axis not in (None, 0):
        raise ValueError(f"sweep, batch_axis: expected None for shared batches, or 0, got {batch_axis}.")
    values = {name: _scalars(name, value) for name, value in settings.items()}
    sizes = {name: len(value) for name, value in values.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"sweep: expected equally many values of each setting, got {sizes}. Write out a grid.")
    size = next(iter(sizes.values()), None)
    labels = _labels(values)

    def mapped(function: Callable[..., Any], *in_axes: Any, out_axes: Any) -> Callable[..., Any]:
        """Maps a function of a member's distiller and further arguments over members."""

        def one(values: dict[str, Array], *arguments: Any) -> Any:
            return function(make(**values), *arguments)

        return lambda *arguments: jax.vmap(one, (0, *in_axes), out_axes)(values, *arguments)

    def step_all(shared: bool) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        def one(kd: Distiller, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            new, metrics = kd.step(state, batch)
            return new, _labeled(metrics, labels)

        return mapped(one, _axes(shared), batch_axis, out_axes=(_axes(shared), 0))

    def init(key: Array, batch: Batch) -> TrainState:
        checks.key("init, key", key)
        checks.batch("init, batch", batch)
        several = _has_member_axis(key, size)
        shapes = jax.eval_shape(lambda batch: batch, dict(batch))
        one_batch = shapes if batch_axis is None else jax.eval_shape(lambda b: jax.tree.map(lambda x: x[0], b), shapes)

        def init_all(shared: bool) -> Callable[[Array], TrainState]:
            return mapped(lambda kd, key: kd.init(key, one_batch), 0 if several else None, out_axes=_axes(shared))

        # Tries a shared teacher: `jax.vmap` raises if the teacher's state depends on the member, after `init` or after
        # a step. Nothing is computed.
        try:
            jax.eval_shape(step_all(True), jax.eval_shape(init_all(True), key), shapes)
        except ValueError:
            return init_all(False)(key)
        state = init_all(True)(key)
        return state._replace(teacher=Shared(state.teacher))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        inner, shared = _unwrap_shared(state)
        new, metrics = step_all(shared)(inner, batch)
        return (new._replace(teacher=Shared(new.teacher)) if shared else new), metrics

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        inner, shared = _unwrap_shared(state)

        def one(kd: Distiller, state: TrainState, batch: Batch) -> Metrics:
            return _labeled(kd.evaluate(state, batch), labels)

        return mapped(one, _axes(shared), None, out_axes=0)(inner, batch)

    return Distiller(init, step, evaluate)


def select_run(state: TrainState, i: int) -> TrainState:
    """Returns the state of one member of a sweep, numbered from 0.

    It is a state of the distiller that ``make`` returns for the member's values.

    Raises:
      IndexError: there is no such member.

    >>> from jaxkd.types import ObjectiveVars, Variables
    >>> parts = Variables(jnp.array([1.0, 2.0])), Shared(jnp.ones(())), ObjectiveVars(), {}
    >>> select_run(TrainState(*parts, jnp.int32(3), jax.random.split(jax.random.key(0))), 1)[:2]
    (Variables(params=Array(2., dtype=float32), state={}), Array(1., dtype=float32))
    """
    inner, shared = _unwrap_shared(state)
    size = inner.key.shape[0]
    if not 0 <= i < size:
        raise IndexError(f"select_run: expected a number from 0 to {size - 1}, got {i}.")

    def pick(axis: int | None, part: PyTree) -> PyTree:
        return part if axis is None else jax.tree.map(lambda x: x[i], part)

    return TrainState(*map(pick, _axes(shared), inner))


def _labels(values: dict[str, Array]) -> tuple[str, ...]:
    """Returns a label for each member, from its values if these are known."""
    if not values or any(isinstance(x, jax.core.Tracer) for x in values.values()):
        return ()
    members = zip(*(x.tolist() for x in values.values()), strict=True)
    labels = [",".join(f"{name}={x:g}" for name, x in zip(values, member, strict=True)) for member in members]
    return tuple(labels if len(set(labels)) == len(labels) else (f"{i},{label}" for i, label in enumerate(labels)))


def _labeled(metrics: Metrics, labels: tuple[str, ...]) -> dict[str, Mean | Derived]:
    """Returns metrics of one member that carry the labels of all members."""

    def labeled(metric: Mean | Derived) -> Mean | Derived:
        if isinstance(metric, Derived):
            return dataclasses.replace(metric, labels=labels)
        return LabeledMean.tree_unflatten(labels, metric)

    return {name: labeled(metric) if labels else metric for name, metric in metrics.items()}


def _axes(shared: bool) -> Any:
    """Returns the member axis of each part of a state; None for shared parts."""
    axes = {"student": 0, "teacher": None if shared else 0, "objective": 0, "opt_state": 0, "step": None, "key": 0}
    return TrainState(**axes)  # type: ignore[arg-type]


def _unwrap_shared(state: TrainState) -> tuple[TrainState, bool]:
    if isinstance(state.teacher, Shared):
        return state._replace(teacher=state.teacher.value), True
    return state, False


def _has_member_axis(key: Array, size: int | None) -> bool:
    """Returns whether ``key`` is ``[n]`` keys and not one."""
    shape = key.shape if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key.shape[:-1]
    if len(shape) > 1 or (size is None and not shape) or (shape and size not in (None, shape[0])):
        expected = "one key for each member, [n]" if size is None else f"one key, or one for each member, [{size}]"
        raise ValueError(f"sweep, key: expected {expected}, got {list(shape) if shape else 'one key'}.")
    return bool(shape)


def _scalars(name: str, value: Any) -> Array:
    array = jnp.asarray(value)
    if array.ndim != 1 or not len(array):
        raise ValueError(
            f"sweep, {name}: expected one number for each member, [n], got {list(array.shape)}. Set a value that all "
            "members share inside make."
        )
    return array
