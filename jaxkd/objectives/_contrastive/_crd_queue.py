"""Contrastive distillation with a queue of the embeddings of earlier batches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import batches
from jaxkd._core.axes import gather
from jaxkd._core.batches import lookup
from jaxkd.objectives._checks import class_labels, positive, sizes
from jaxkd.objectives._compose import reduce_values
from jaxkd.objectives._embeddings import SIDES, check_features, embed, init_embeddings
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars, Schedule


def crd_queue(
    student: str,
    teacher: str,
    *,
    queue_size: int = 4096,
    embedding_size: int = 128,
    temperature: float | Array = 0.07,
    weight: float | Array | Schedule = 1.0,
    label_path: str | None = "batch/label",
) -> Objective:
    """Softmax contrastive loss against a queue of the last embeddings.

    Also known as: CRD (contrastive representation distillation), with a queue.

    ``−log e^{⟨s_i, t_i⟩/T} / (e^{⟨s_i, t_i⟩/T} + Σ_q e^{⟨s_i, t_q⟩/T})`` over the queued examples q of other classes,
    and the same with student and teacher exchanged. It is the softmax form of CRD's objective (Tian, Krishnan & Isola,
    ICLR 2020) with the queue of He et al., "Momentum Contrast", CVPR 2020, equation 1. Its memory does not grow with
    the training set, and it needs no ``index``. After scoring, the batch's embeddings replace the oldest.

    Args:
      student: path of the student's feature ``[batch, ...]``.
      teacher: path of the teacher's feature ``[batch, ...]``; the shapes may differ.
      queue_size: length of the queue, at least the global batch size.
      embedding_size: size of the embeddings.
      temperature: T > 0.
      weight: a number, or an optax schedule of the step.
      label_path: path of integer classes ``[batch]``, which excludes negatives of the anchor's class; None keeps all.

    Returns:
      An `Objective` with both embeddings as parameters and the queue as state. While the queue is empty the loss is 0.
      An evaluation (without a key) leaves the state unchanged.

    Raises:
      ValueError: a number is not positive; and from ``init``: a path does not exist, the labels are not integers
        ``[batch]``, or the batch is larger than the queue.

    >>> objective = crd_queue("student/f", "teacher/f", queue_size=6, embedding_size=4, label_path=None)
    >>> features = {"f": jnp.ones((2, 3))}
    >>> context = Context(features, features, {}, 0)
    >>> variables = objective.init(jax.random.key(0), context)
    >>> out = objective.apply(*variables, context, jax.random.key(1))
    >>> out.value, out.state["written"]
    (Array(0., dtype=float32), Array(2, dtype=int32))
    """
    sizes("crd_queue", queue_size=queue_size, embedding_size=embedding_size)
    positive("crd_queue", temperature=temperature)
    paths = (student, teacher)

    def init(key: Array, context: Context) -> ObjectiveVars:
        check_features(context, paths)
        if label_path is not None:
            class_labels(context, label_path)
        batch = lookup(context, student).shape[0]
        if batch > queue_size:
            raise ValueError(f"crd_queue, queue_size: expected at least the batch of {batch}, got {queue_size}.")
        state = {
            "queue": {side: jnp.zeros((queue_size, embedding_size), jnp.float32) for side in SIDES},
            "label": jnp.zeros(queue_size, jnp.int32),
            "written": jnp.zeros((), jnp.int32),
        }
        return ObjectiveVars(init_embeddings(jax.random.split(key), context, paths, embedding_size), state)

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        embedded = embed(params, context, paths)
        mask = batches.example_mask(context.batch)
        batch = embedded["student"].shape[0]
        negative = jnp.broadcast_to((jnp.arange(queue_size) < state["written"])[None, :], (batch, queue_size))
        if label_path is None:
            label = jnp.zeros(batch, jnp.int32)
        else:
            label = jnp.asarray(class_labels(context, label_path)).astype(jnp.int32)
            negative = negative & (label[:, None] != state["label"][None, :])

        def cross_entropy(anchor: Array, positive: Array, queue: Array) -> Array:
            products = jnp.matmul(anchor, queue.T, precision=jax.lax.Precision.HIGHEST)
            own = jnp.sum(anchor * positive, axis=1, keepdims=True)
            logits = jnp.concatenate([own, jnp.where(negative, products, -jnp.inf)], axis=1) / temperature
            return losses.cross_entropy(logits, jnp.zeros(batch, jnp.int32), where=mask)

        s, t, queue = embedded["student"], embedded["teacher"], state["queue"]
        values = cross_entropy(s, t, queue["teacher"]) + cross_entropy(t, s, queue["student"])
        if key is not None:
            where = jnp.ones(batch, bool) if mask is None else mask
            state = update(state, embedded, label, where, context)
        return reduce_values(values, mask, weight, context, state)

    def update(state: Any, embedded: dict[str, Array], label: Array, where: Array, context: Context) -> Any:
        where, label = gather(where, context.axis_name), gather(label, context.axis_name)
        if len(where) > queue_size:
            raise ValueError(f"crd_queue, queue_size: expected at least the batch of {len(where)}, got {queue_size}.")
        # Unmasked examples take consecutive places of a ring; the place of a masked one is out of range, so the scatter
        # drops it.
        place = jnp.where(where, (state["written"] + jnp.cumsum(where, dtype=jnp.int32) - 1) % queue_size, queue_size)
        queue = {}
        for side, v in embedded.items():
            old, rows = state["queue"][side], gather(jax.lax.stop_gradient(v), context.axis_name)
            queue[side] = old.at[place].set(rows.astype(old.dtype), mode="drop")
        # A full queue only needs the next place, so the count wraps to [size, 2 size) and never overflows.
        written = state["written"] + jnp.sum(where, dtype=jnp.int32)
        written = jnp.where(written >= 2 * queue_size, written - queue_size, written)
        return {"queue": queue, "label": state["label"].at[place].set(label, mode="drop"), "written": written}

    return Objective(init, apply)
