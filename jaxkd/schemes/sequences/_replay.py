"""Adaptive replay: the student's sequences are made rarely and used several times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import metrics as metrics_lib
from jaxkd._core import axes, batches, checks, train_state
from jaxkd.metrics import join
from jaxkd.schemes.sequences._examples import entries_of, keys_of, replace, stored, varying
from jaxkd.types import Array, Batch, Distiller, Mean, Metrics, PyTree, TrainState

_SLOT = "replay"
_STREAM = 0x2E91  # folded into the key, so that the sampler's keys differ from the wrapped distiller's
_DATA, _GENERATED, _REPLAYED = range(3)


def replay(
    kd: Distiller,
    generate: Callable[..., Mapping[str, Any]],
    *,
    steps: int,
    validation: Batch,
    eval_every: int,
    capacity: int = 1000,
    fraction: float = 0.0,
    increment: float = 0.1,
    rise: float = 0.1,
) -> Distiller:
    """Adaptive off-policy distillation: sequences of the student, made and replayed.

    Also known as: DistiLLM.

    Each step draws r uniformly. The batch is made by ``generate`` and stored where ``r < φ (1 − step / steps)``, or
    where ``r < φ`` and the buffer is not full; it is drawn from the buffer where ``r < φ`` otherwise; else it is the
    data's. φ rises where validation shows that the student suffers from the difference between training and inference:
    by ``increment``, up to 1, where the validation loss is at least ``rise`` above the one before. Ko et al.,
    "DistiLLM", ICML 2024, section 3.2; the defaults are those of the authors' code, where the loss before is the first
    one, and later that of the last rise, as here. The buffer holds the latest ``capacity`` sequences, and a batch is
    drawn from it without replacement.

    Buffer, φ and the validation are part of the step, and so of a run that is resumed: they are in
    ``opt_state["replay"]``. What an example gets depends on the key, the step and its place in the whole batch.

    Args:
      kd: any distiller whose teacher can be evaluated on new examples, not a cached one.
      generate: function of the student, as for `jaxkd.schemes.on_policy`. It makes every entry that belongs to a
        sequence, as a replayed one meets the other entries of another batch, and no entry that the batch lacks.
      steps: number of steps of the training, over which the share of new sequences falls to 0.
      validation: batch whose ``evaluate`` loss is measured, a constant of the compiled step.
      eval_every: steps between the validations, of which the first precedes the training.
      capacity: number of sequences in the buffer, at least a batch.
      fraction: φ at the beginning.
      increment: what φ rises by.
      rise: how much the validation loss has to rise above the one before, the paper's ε.

    Returns:
      A `Distiller`. ``step`` also reports ``generated`` and ``replayed``, the shares of the examples, and ``phi``.

    Raises:
      ValueError: a setting is out of range; from ``init`` and ``step``: an entry does not fit that of the batch, or the
        buffer is smaller than the batch.

    >>> import optax, jaxkd
    >>> table = jaxkd.adapters.plain(lambda key, x: jnp.zeros((3, 3)), lambda w, x: w[x], inputs="token")
    >>> teacher = jaxkd.teachers.frozen(table, jaxkd.Variables(5 * jnp.eye(3)))
    >>> loss = jaxkd.term(jaxkd.losses.skew_kl, "student/logits", "teacher/logits")
    >>> kd = jaxkd.distill(table, teacher, loss, optimizer=optax.sgd(1.0))
    >>> def generate(student, batch, *, keys):
    ...     return {"token": jax.vmap(jax.random.categorical)(keys, student.params[batch["token"]])}
    >>> batch = {"token": jnp.zeros(4, jnp.int32)}
    >>> kd = replay(kd, generate, steps=1, validation=batch, eval_every=10, capacity=8, fraction=1.0)
    >>> state, step = kd.init(jax.random.key(0), batch), jax.jit(kd.step)
    >>> for _ in range(4):
    ...     state, metrics = step(state, batch)
    ...     print([jaxkd.metrics.compute(metrics)[name] for name in ("generated", "replayed")])
    [1.0, 0.0]
    [1.0, 0.0]
    [0.0, 1.0]
    [0.0, 1.0]
    """
    checks.contract("replay, kd", kd, Distiller)
    checks.batch("replay, validation", validation)
    for name, value in {"steps": steps, "eval_every": eval_every, "capacity": capacity}.items():
        if value < 1:
            raise ValueError(f"replay, {name}: expected a positive number, got {value}.")
    for name, share in {"fraction": fraction, "increment": increment}.items():
        if not 0 <= share <= 1:
            raise ValueError(f"replay, {name}: expected a number from 0 to 1, got {share}.")

    def init(key: Array, batch: Batch) -> TrainState:
        state, size = kd.init(key, batch), batches.batch_size(batch)
        _check_capacity(capacity, size)

        def run(state: TrainState, batch: Batch) -> dict[str, Array]:
            made = entries_of("replay", generate, state.student, batch, keys=keys_of(state.key, jnp.arange(size)))
            replace("replay", batch, made, jnp.ones(size, bool))  # raises for an entry that does not fit
            return made

        made = jax.eval_shape(run, state, dict(batch))
        own = {
            "entries": {name: jnp.zeros((capacity, *x.shape[1:]), x.dtype) for name, x in made.items()},
            "count": jnp.int32(0),
            "next": jnp.int32(0),
            "phi": jnp.float32(fraction),
            "loss": jnp.float32(jnp.inf),
        }
        return train_state.put(state, _SLOT, own, "replay")

    def validated(state: TrainState, own: PyTree) -> tuple[Array, Array]:
        """Returns φ and the loss with which the next validation is compared."""

        def measured() -> Array:
            reported = kd.evaluate(state, validation)
            checks.known("loss", list(reported), "replay, metric of the evaluation")
            found = reported["loss"]
            return jnp.asarray(found.sum / found.count, jnp.float32)

        due = state.step % eval_every == 0
        loss = jax.lax.cond(due, measured, lambda: own["loss"])
        rises = due & (loss >= own["loss"] + rise)
        phi = jnp.where(rises, jnp.minimum(own["phi"] + increment, 1.0), own["phi"])
        return phi, jnp.where(rises | (due & jnp.isinf(own["loss"])), loss, own["loss"])

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        checks.batch("replay, batch", batch)
        inner, own = train_state.take(state, _SLOT, "replay")
        axis_name, size, included = axes.mapped_axis(), batches.batch_size(batch), batches.example_mask(batch)
        _check_capacity(capacity, size if axis_name is None else size * jax.lax.axis_size(axis_name))
        key = jax.random.fold_in(jax.random.fold_in(inner.key, _STREAM), inner.step)
        draw_key, place_key = jax.random.split(key)
        places = axes.positions(included, size, axis_name)
        phi, loss = validated(inner, own)
        draw, fresh = jax.random.uniform(draw_key), phi * (1 - inner.step / steps)
        makes = (draw < fresh) | ((draw < phi) & (own["count"] < capacity))
        source = jnp.where(makes, _GENERATED, jnp.where(draw < phi, _REPLAYED, _DATA))
        bank = own["entries"]

        def from_data() -> tuple[PyTree, PyTree]:
            return jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), bank), bank

        def from_student() -> tuple[PyTree, PyTree]:
            made = entries_of("replay", generate, inner.student, batch, keys=keys_of(place_key, places))
            rows = (own["next"] + places) % capacity
            rows = rows if included is None else jnp.where(included, rows, capacity)
            return made, stored(bank, made, rows, axis_name)

        def from_buffer() -> tuple[PyTree, PyTree]:
            rows = jax.random.permutation(place_key, capacity)[places]
            return jax.tree.map(lambda x: x[rows], bank), bank

        branches = [varying(branch, axis_name) for branch in (from_data, from_student, from_buffer)]
        made, bank = jax.lax.switch(source, branches)
        chosen = jnp.broadcast_to(source != _DATA, size)
        chosen = chosen if included is None else chosen & included
        new, metrics = kd.step(inner, replace("replay", batch, made, chosen))
        seen = jnp.float32(1) * batches.count_examples(batch)
        own_shares = {
            "generated": Mean(jnp.where(source == _GENERATED, seen, 0), seen),
            "replayed": Mean(jnp.where(source == _REPLAYED, seen, 0), seen),
        }
        shown = metrics_lib.psum(own_shares, axis_name)
        added = shown["generated"].sum.astype(jnp.int32)
        own = {
            "entries": bank,
            "count": jnp.minimum(own["count"] + added, capacity),
            "next": (own["next"] + added) % capacity,
            "phi": phi,
            "loss": loss,
        }
        return train_state.put(new, _SLOT, own, "replay"), join(metrics, shown, {"phi": Mean(phi, jnp.float32(1))})

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        return kd.evaluate(train_state.take(state, _SLOT, "replay")[0], batch)

    return Distiller(init, step, evaluate)


def _check_capacity(capacity: int, size: int) -> None:
    if capacity < size:
        raise ValueError(f"replay, capacity: expected at least the {size} examples of a batch, got {capacity}.")
