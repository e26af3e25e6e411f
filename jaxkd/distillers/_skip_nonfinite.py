"""Skipping of updates that are not finite: a bad batch costs one step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd._core import axes, batches, checks, train_state
from jaxkd.types import Array, Batch, Distiller, Mean, Metrics, TrainState

_SLOT = "skipped"
_IN_A_ROW, _TOTAL = "in_a_row", "total"


def skip_nonfinite(kd: Distiller, *, limit: int = 10) -> Distiller:
    """Returns a distiller that skips a step whose loss or new state is not finite.

    The loss and every floating-point array of the new state are checked: student, parameters and state of the
    objective, optimizer, teacher. Values that were not finite before the step are ignored. A skipped step leaves the
    state unmodified, except for the step number. The check costs one pass over the state. Apply it last:
    ``skip_nonfinite(with_ema(kd))``.

    Args:
      kd: any distiller.
      limit: number of consecutive steps that may be skipped. The next step that is not finite reports a loss of NaN,
        which ends `jaxkd.training.fit` with a `NonFiniteError`; the state remains finite.

    Returns:
      A `Distiller`. ``step`` also reports ``skipped``, the share of skipped steps; all other metrics of a skipped step
      have a count of 0. ``opt_state["skipped"]`` holds the numbers of skipped steps, ``"total"`` and ``"in_a_row"``.

    Raises:
      ValueError: the limit is not positive.

    >>> import jaxkd, optax
    >>> model = jaxkd.adapters.plain(lambda key, x: jnp.ones(2), lambda w, x: x * w.reshape(1, 2), inputs="x")
    >>> loss = jaxkd.term(jaxkd.losses.cross_entropy, "student/logits", "batch/label")
    >>> kd = jaxkd.distill(model, jaxkd.teachers.none(), loss, optimizer=optax.sgd(0.1))
    >>> kd = skip_nonfinite(kd)
    >>> batch = {"x": jnp.full((1, 2), jnp.nan), "label": jnp.array([0])}
    >>> state, metrics = kd.step(kd.init(jax.random.key(0), batch), batch)
    >>> state.student.params, int(state.step), int(state.opt_state["skipped"]["total"])
    (Array([1., 1.], dtype=float32), 1, 1)
    >>> jaxkd.metrics.compute(metrics)
    {'loss': nan, 'objective': nan, 'weight': nan, 'skipped': 1.0}
    """
    checks.contract("skip_nonfinite, kd", kd, Distiller)
    if limit < 1:
        raise ValueError(f"skip_nonfinite, limit: expected a positive number of steps in a row, got {limit}.")

    def init(key: Array, batch: Batch) -> TrainState:
        counts = {_IN_A_ROW: jnp.zeros((), jnp.int32), _TOTAL: jnp.zeros((), jnp.int32)}
        return train_state.put(kd.init(key, batch), _SLOT, counts, "skip_nonfinite")

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        old, counts = train_state.take(state, _SLOT, "skip_nonfinite")
        new, metrics = kd.step(old, batch)
        good = _stays_finite(old, new) & _finite_loss(metrics)
        axis_name = axes.mapped_axis()
        if axis_name is not None:  # if one device skipped a step alone, replicas would diverge
            good = jax.lax.pmin(good.astype(jnp.int32), axis_name) > 0
        kept: TrainState = jax.tree.map(lambda x, y: _select(good, x, y), new, old)
        in_a_row = jnp.where(good, 0, counts[_IN_A_ROW] + 1)
        counts = {_IN_A_ROW: in_a_row, _TOTAL: counts[_TOTAL] + (1 - good.astype(jnp.int32))}
        reported = _reported(metrics, good, in_a_row > limit)
        return train_state.put(kept._replace(step=new.step), _SLOT, counts, "skip_nonfinite"), reported

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        return kd.evaluate(train_state.take(state, _SLOT, "skip_nonfinite")[0], batch)

    return Distiller(init, step, evaluate)


def _stays_finite(old: TrainState, new: TrainState) -> Array:
    """Returns whether every value that was finite before the step still is.

    Some states start with values that are not, such as a best loss of infinity, which may become finite or stay.
    """

    def stays(before: Array, after: Array) -> Array:
        return jnp.all(jnp.isfinite(after) | ~(jnp.isfinite(before) | jnp.isnan(after)) | jnp.isnan(before))

    parts = ((state.student, state.teacher, state.objective, state.opt_state) for state in (old, new))
    pairs = zip(*map(jax.tree.leaves, parts), strict=True)
    finite = [stays(x, y) for x, y in pairs if jnp.issubdtype(y.dtype, jnp.inexact)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)


def _losses(metrics: Metrics) -> list[str]:
    """Returns the metrics that have to be finite: the loss, or all without a loss."""
    return ["loss"] if "loss" in metrics else list(metrics)


def _finite_loss(metrics: Metrics) -> Array:
    finite = [jnp.isfinite(metrics[name].sum) for name in _losses(metrics)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)


def _reported(metrics: Metrics, good: Array, stop: Array) -> Metrics:
    """Returns the metrics of a good step, or zeros for a skipped one.

    Beyond the limit (``stop``), they are unmodified except for the loss, which is NaN.
    """
    reported = {}
    for name, metric in metrics.items():
        reported[name] = jax.tree.map(lambda x: jnp.where(good | stop, x, jnp.zeros_like(x)), metric)
    for name in _losses(metrics):
        reported[name] = jax.tree.map(lambda x: jnp.where(stop, jnp.nan, x), reported[name])
    # A cache of other inputs is no bad batch: whoever reads the metrics ends the run.
    reported |= {name: metric for name, metric in metrics.items() if batches.is_unseen_metric(name)}
    return {**reported, _SLOT: Mean(1 - good.astype(jnp.float32), jnp.ones((), jnp.float32))}


def _select(good: Array, new: Array, old: Array) -> Array:
    if jnp.issubdtype(new.dtype, jax.dtypes.extended):  # PRNG keys, which jnp.where does not take
        return jax.lax.select(jnp.broadcast_to(good, new.shape), new, old)
    return jnp.where(good, new, old)
