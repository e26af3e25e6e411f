"""Sequence-level distillation: the teacher's sequences become the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import metrics as metrics_lib
from jaxkd._core import axes, batches, checks, train_state
from jaxkd.metrics import join
from jaxkd.schemes.sequences._examples import entries_of, keys_of, replace, rows_of, stored, varying
from jaxkd.types import Array, Batch, Distiller, Mean, Metrics, PyTree, TrainState

_SLOT = "sequences"
_STREAM = 0x5EC7  # folded into the key, so that the sampler's keys differ from the wrapped distiller's


def sequence_level(kd: Distiller, generate: Callable[..., Mapping[str, Any]], *, examples: int) -> Distiller:
    """Sequence-level distillation: the teacher decodes a sequence for each example.

    Also known as: Seq-KD.

    Kim & Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016, section 3.2. An example is decoded when it is first
    in a batch, and its sequence is kept in the state by ``batch["index"]``: once for the whole training, whatever is
    resumed, and as if it had been decoded before. The wrapped distiller then trains on these examples, with any
    objective: `jaxkd.losses.cross_entropy` alone is the paper's. Decoding decides what the sequences are: greedy or
    beam search; several hypotheses as one entry ``[batch, n_best, ...]``, for `jaxkd.losses.ctc_n_best` and
    ``n_best_nll``; and pseudo-labels that a threshold of confidence or consistency filters, as a ``mask`` that is False
    for the sequences to leave out.

    Args:
      kd: any distiller. Its teacher does not change, and has to evaluate new examples if the objective reads it, so
        that it is not a cached one.
      generate: function ``(teacher, batch, *, keys) -> entries``: from the teacher's state, of `jaxkd.teachers.frozen`
        its `Variables`, the batch and a PRNG key for each example ``[batch]``, the entries ``[batch, ...]`` that
        describe its sequence, such as tokens, labels and the ``mask`` of its tokens. An entry may be new; others have
        the batch's shapes. Keys depend on the run's key and the index, not on the step.
      examples: number of examples of the training set, above every ``batch["index"]``. An example beyond it is decoded
        in every step.

    Returns:
      A `Distiller`. ``step`` also reports ``decoded``, the share of examples decoded in this step, and ``kept``, the
      share of those that the mask includes. ``evaluate`` sees the data. The sequences are in ``opt_state["sequences"]``
      and every checkpoint.

    Raises:
      ValueError: the number of examples is not positive; from ``init`` and ``step``: the batch has no ``index``, or an
        entry does not fit that of the batch.

    >>> import optax, jaxkd
    >>> table = jaxkd.adapters.plain(lambda key, x: jnp.zeros((3, 3)), lambda w, x: w[x], inputs="token")
    >>> teacher = jaxkd.teachers.frozen(table, jaxkd.Variables(5 * jnp.eye(3)))
    >>> loss = jaxkd.term(jaxkd.losses.cross_entropy, "student/logits", "batch/label")
    >>> def greedy(teacher, batch, *, keys):
    ...     return {"label": jnp.argmax(teacher.params[batch["token"]], axis=-1)}
    >>> kd = sequence_level(jaxkd.distill(table, teacher, loss, optimizer=optax.sgd(1.0)), greedy, examples=2)
    >>> batch = {"token": jnp.array([1, 2]), "index": jnp.array([0, 1])}
    >>> state, step = kd.init(jax.random.key(0), {**batch, "label": jnp.zeros(2, int)}), jax.jit(kd.step)
    >>> for _ in range(2):
    ...     state, metrics = step(state, {**batch, "label": jnp.zeros(2, int)})
    ...     print(float(metrics["decoded"].sum), state.opt_state["sequences"]["entries"]["label"])
    2.0 [1 2]
    0.0 [1 2]
    """
    checks.contract("sequence_level, kd", kd, Distiller)
    if examples < 1:
        raise ValueError(f"sequence_level, examples: expected a positive number, got {examples}.")

    def decoded(state: TrainState, batch: Batch) -> dict[str, Array]:
        checks.known("index", checks.shapes(batch), "sequence_level, batch entry", hint="It numbers the examples.")
        keys = keys_of(jax.random.fold_in(state.key, _STREAM), batch["index"])
        return entries_of("sequence_level", generate, state.teacher, batch, keys=keys)

    def init(key: Array, batch: Batch) -> TrainState:
        state, size = kd.init(key, batch), batches.batch_size(batch)

        def run(state: TrainState, batch: Batch) -> dict[str, Array]:
            made = decoded(state, batch)
            replace("sequence_level", batch, made, jnp.ones(size, bool), every=True)  # raises if one does not fit
            return made

        made = jax.eval_shape(run, state, dict(batch))
        bank = {name: jnp.zeros((examples, *x.shape[1:]), x.dtype) for name, x in made.items()}
        return train_state.put(state, _SLOT, {"entries": bank, "made": jnp.zeros(examples, bool)}, "sequence_level")

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        checks.batch("sequence_level, batch", batch)
        inner, own = train_state.take(state, _SLOT, "sequence_level")
        axis_name, size, included = axes.mapped_axis(), batches.batch_size(batch), batches.example_mask(batch)
        chosen, index = jnp.ones(size, bool) if included is None else included, jnp.asarray(batch["index"])
        known = own["made"].at[index].get(mode="fill", fill_value=False)
        new_ones = Mean(jnp.sum(chosen & ~known, dtype=jnp.float32), jnp.sum(chosen, dtype=jnp.float32))
        shown = metrics_lib.psum({"decoded": new_ones}, axis_name)

        def look_up() -> tuple[PyTree, PyTree]:
            return {name: x.at[index].get(mode="clip") for name, x in own["entries"].items()}, own

        def decode() -> tuple[PyTree, PyTree]:
            made, rows = decoded(inner, batch), jnp.where(chosen & ~known, index, examples)
            bank = stored(own, {"entries": made, "made": chosen}, rows, axis_name)
            kept, _ = look_up()  # an example keeps its sequence, even where another batch would round otherwise
            return {name: jnp.where(rows_of(known, x.ndim), kept[name], x) for name, x in made.items()}, bank

        # All devices decode, or none: each stores the sequences of all.
        branches = [varying(branch, axis_name) for branch in (decode, look_up)]
        made, own = jax.lax.cond(shown["decoded"].sum > 0, *branches)
        whole = replace("sequence_level", batch, made, chosen, every=True)
        new, metrics = kd.step(inner, whole)
        kept = Mean(*(jnp.float32(1) * batches.count_examples(x) for x in (whole, batch)))
        return train_state.put(new, _SLOT, own, "sequence_level"), join(
            metrics, shown, metrics_lib.psum({"kept": kept}, axis_name)
        )

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        return kd.evaluate(train_state.take(state, _SLOT, "sequence_level")[0], batch)

    return Distiller(init, step, evaluate)
