"""On-policy distillation: the student writes what it learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import metrics as metrics_lib
from jaxkd._core import axes, batches, checks
from jaxkd.metrics import join
from jaxkd.schemes.sequences._examples import Selection, entries_of, fraction_of, keys_of, replace
from jaxkd.types import Array, Batch, Distiller, Mean, Metrics, PyTree, TrainState

Sample = Callable[..., Mapping[str, Any]]
"""``(student, teacher, batch, *, keys) -> entries``."""

_STREAM = 0x0F0C  # folded into the key, so that the sampler's keys differ from the wrapped distiller's


def on_policy(kd: Distiller, generate: Callable[..., Mapping[str, Any]], *, fraction: float = 0.5) -> Distiller:
    """On-policy distillation: a fraction of each batch is sampled from the student.

    Also known as: GKD (generalized knowledge distillation).

    Before each step, λ of the examples are replaced by what ``generate`` makes of them with the present student, such
    as continuations of their prompts; then the wrapped distiller takes its step on the batch, with any objective. The
    loss is ``(1 − λ) E_data D + λ E_student D``. Agarwal et al., "On-Policy Distillation of Language Models", ICLR
    2024, section 3; no gradient passes through the sampling, as there. λ = 1 with `jaxkd.losses.reverse_kl` is MiniLLM
    without its long-term part (`teacher_mixed`). The paper's algorithm draws once for each batch whether the student
    makes all of it; here every batch has λ of its examples from the student, each with the probability λ, and only as
    many are generated.

    Sampling, teacher and update are one program. What an example gets depends on the run's key, the step and the
    example's place among the unmasked examples of the batch, and so neither on the devices, nor on micro-batches, nor
    on whether the run was resumed. A term over tokens divides by the unmasked tokens of the whole batch, those of the
    data and of the student alike.

    Args:
      kd: any distiller whose teacher can be evaluated on new examples, not a cached one.
      generate: function ``(student, batch, *, keys) -> entries``: from the student's `Variables`, the batch and a PRNG
        key for each example ``[batch]``, the entries of the new examples ``[batch, ...]``, of the batch's shapes: all
        that describe a sequence, such as tokens, labels and the ``mask`` of its tokens. It may get only some rows of
        the batch, each of which it has to treat separately, and computes in inference mode. It is not specific to text:
        states that a student's policy visits are examples as well.
      fraction: λ, from 0 to 1. With 1, ``generate`` may add entries that the batch does not have.

    Returns:
      A `Distiller` with the same state. ``step`` also reports ``generated``, the share of generated examples.

    Raises:
      ValueError: λ is outside of [0, 1]; from ``init`` and ``step``: an entry does not fit that of the batch.

    >>> import optax, jaxkd
    >>> table = jaxkd.adapters.plain(lambda key, x: jnp.zeros((3, 3)), lambda w, x: w[x], inputs="token")
    >>> teacher = jaxkd.teachers.frozen(table, jaxkd.Variables(5 * jnp.eye(3)))
    >>> loss = jaxkd.term(jaxkd.losses.reverse_kl, "student/logits", "teacher/logits")
    >>> def generate(student, batch, *, keys):  # the second token, given the first
    ...     first = batch["token"][:, 0]
    ...     second = jax.vmap(jax.random.categorical)(keys, student.params[first])
    ...     return {"token": jnp.stack([first, second], axis=1)}
    >>> kd = on_policy(jaxkd.distill(table, teacher, loss, optimizer=optax.sgd(1.0)), generate, fraction=0.5)
    >>> batch = {"token": jnp.zeros((4, 2), jnp.int32)}
    >>> state, metrics = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> jaxkd.metrics.compute(metrics)["generated"]
    0.5
    """

    def sample(student: PyTree, teacher: PyTree, batch: Batch, *, keys: Array) -> Mapping[str, Any]:
        return generate(student, batch, keys=keys)

    return _sampled("on_policy", kd, sample, fraction)


def teacher_mixed(kd: Distiller, generate: Callable[..., Mapping[str, Any]], *, fraction: float = 1.0) -> Distiller:
    """`on_policy` whose sampler also gets the teacher, to sample from a mixture.

    Also known as: teacher-mixed sampling, MiniLLM.

    Each token is drawn from ``α p_t + (1 − α) p_s``, so that a weak student does not learn from its degenerate
    sequences. Gu et al., "MiniLLM", ICLR 2024, section 2.2, with α = 0.2. ``generate`` draws them, and returns the
    importance weights ``p_s / (α p_t + (1 − α) p_s)`` of the drawn tokens as one more entry, which the terms of the
    objective take as their weights: ``term(losses.reverse_kl, ..., weights="batch/importance")``, and the same with
    `reverse_kl_to_go`. Such a term is ``Σ w l / Σ w``, with weights that sum to 1, where the paper divides by the
    number of tokens, which is the mean of Σ w.

    Args:
      kd: any distiller whose teacher can be evaluated on new examples, not a cached one.
      generate: function ``(student, teacher, batch, *, keys) -> entries``, as that of `on_policy`; the teacher is its
        state in the step, of `jaxkd.teachers.frozen` its `Variables`.
      fraction: share of the examples that are sampled, from 0 to 1.

    Returns:
      A `Distiller` with the same state. ``step`` also reports ``generated``, the share of generated examples.

    Raises:
      ValueError: the fraction is outside of [0, 1]; from ``init`` and ``step``: an entry does not fit that of the
        batch.

    >>> import optax, jaxkd
    >>> table = jaxkd.adapters.plain(lambda key, x: jnp.zeros((3, 3)), lambda w, x: w[x], inputs="token")
    >>> teacher = jaxkd.teachers.frozen(table, jaxkd.Variables(5 * jnp.eye(3)))
    >>> loss = jaxkd.term(jaxkd.losses.reverse_kl, "student/logits", "teacher/logits", weights="batch/importance")
    >>> def generate(student, teacher, batch, *, keys):
    ...     p, q = (jax.nn.softmax(x.params[batch["token"]]) for x in (student, teacher))
    ...     mixed = 0.2 * q + 0.8 * p
    ...     token = jax.vmap(jax.random.categorical)(keys, jnp.log(mixed))
    ...     weight = jnp.take_along_axis(p / mixed, token[:, None], axis=1)[:, 0]
    ...     return {"token": token, "importance": weight}
    >>> kd = teacher_mixed(jaxkd.distill(table, teacher, loss, optimizer=optax.sgd(1.0)), generate)
    >>> batch = {"token": jnp.zeros(4, jnp.int32), "importance": jnp.ones(4)}
    >>> state, metrics = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> jaxkd.metrics.compute(metrics)["generated"]
    1.0
    """
    return _sampled("teacher_mixed", kd, generate, fraction)


def _sampled(what: str, kd: Distiller, sample: Sample, fraction: float) -> Distiller:
    checks.contract(f"{what}, kd", kd, Distiller)
    share = fraction_of(what, fraction)
    if not share:
        return kd

    def init(key: Array, batch: Batch) -> TrainState:
        state = kd.init(key, batch)
        # Raises for an entry that does not fit.
        jax.eval_shape(lambda state, batch: generated(what, state, batch, sample, share), state, dict(batch))
        return state

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        checks.state(f"{what}, state", state)
        checks.batch(f"{what}, batch", batch)
        whole, reported = generated(what, state, batch, sample, share)
        new, metrics = kd.step(state, whole)
        return new, join(metrics, reported)

    return Distiller(init, step, kd.evaluate)


def generated(
    what: str, state: TrainState, batch: Batch, sample: Sample, share: Fraction
) -> tuple[dict[str, Any], Metrics]:
    """Returns the batch of which a share is sampled, and the metric of that share."""
    axis_name, size, included = axes.mapped_axis(), batches.batch_size(batch), batches.example_mask(batch)
    key = jax.random.fold_in(jax.random.fold_in(state.key, _STREAM), state.step)
    places = axes.positions(included, size, axis_name)
    selection = Selection.draw(key, places, included, share)
    keys, given = keys_of(key, selection.take(places)), selection.take(dict(batch))
    made = entries_of(what, sample, state.student, state.teacher, given, keys=keys)
    whole = replace(what, batch, selection.put(made), selection.chosen, every=share == 1)
    counted = Mean(jnp.sum(selection.chosen, dtype=jnp.float32), jnp.float32(1) * batches.count_examples(batch))
    return whole, metrics_lib.psum({"generated": counted}, axis_name)
