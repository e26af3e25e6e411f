"""Contrastive representation distillation with a memory bank.

The bank does not depend on the number of devices: negatives are drawn by an example's position in the global batch, and
all devices write the same rows.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from jaxkd._core import batches, checks
from jaxkd._core.axes import example_keys, gather
from jaxkd._core.batches import lookup
from jaxkd.objectives._checks import positive, rows_within, share, sizes
from jaxkd.objectives._compose import reduce_values
from jaxkd.objectives._contrastive._rows import row_index, write_index
from jaxkd.objectives._embeddings import SIDES, check_features, embed, init_embeddings
from jaxkd.objectives.layers import unit
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars, Schedule


def crd(
    student: str,
    teacher: str,
    labels: Any,
    *,
    negatives: int = 16384,
    embedding_size: int = 128,
    temperature: float | Array = 0.07,
    momentum: float = 0.5,
    weight: float | Array | Schedule = 1.0,
    index_path: str = "batch/index",
) -> Objective:
    """Noise-contrastive estimation against a memory bank of all training examples.

    Also known as: CRD (contrastive representation distillation).

    ``L = h(s; bank_t) + h(t; bank_s)``, with h the noise-contrastive estimation of `jaxkd.losses.contrastive_nce` on
    ``exp(⟨v, bank_j⟩ / T) / Z`` for the example's own row of the bank and K rows of other classes. Tian, Krishnan &
    Isola, "Contrastive Representation Distillation", ICLR 2020, equations 17 to 19 of its appendix. Z is ``N · mean
    exp(·)`` over the first batch, and constant afterwards; each direction has its own, stored as a logarithm. After
    scoring, the rows of the batch become ``n(m · bank + (1 − m) · v)``.

    As in the authors' code, the features are flattened, linearly embedded and normalized, both embeddings are learned,
    and the banks start as uniform random numbers. Unlike in their code, the K negatives are drawn with replacement, a
    single mean is taken over the batch, and of an example that occurs twice in a batch the last occurrence is written
    (there, the hardware decides).

    The scores are selected from the products of the embeddings with the whole bank, so that no array ``[batch, K,
    features]`` of drawn rows (0.5 GiB for K = 16384) is needed. The banks are state, two float32 arrays ``[N,
    features]``; ``jaxkd.parallel.shard(kd, mesh, rules=...)`` splits them over the devices.

    Args:
      student: path of the student's feature ``[batch, ...]``, usually the pooled one.
      teacher: path of the teacher's feature ``[batch, ...]``; the shapes may differ.
      labels: class of every training example ``[N]``, integers on the host, indexed by ``batch["index"]``; without
        classes, ``np.arange(N)``, where every example is its own class. An index out of range yields NaN, as an invalid
        class label does.
      negatives: K, number of negatives per example.
      embedding_size: size of the embeddings.
      temperature: T > 0.
      momentum: m, share of the old row in an updated row of the bank.
      weight: a number, or an optax schedule of the step. The published weight is 0.8.
      index_path: path of the examples' positions in ``labels``, integers ``[batch]``.

    Returns:
      An `Objective` with both embeddings as parameters, and both banks and Z as state. An evaluation (without a key)
      draws the same negatives every time and leaves the state unchanged; before the first step it uses the Z of its own
      batch. It is meaningful for training examples only, which have rows in the bank.

    Raises:
      ValueError: the labels are not integers ``[N]``, or are all of one class, or a number is not positive; and from
        ``init``: a path does not exist, or the index is not integers ``[batch]``.

    >>> objective = crd("student/f", "teacher/f", np.array([0, 0, 1, 1, 2]), negatives=8, embedding_size=4)
    >>> f = lambda size: {"f": jax.ShapeDtypeStruct((2, size), jnp.float32)}
    >>> context = Context(f(3), f(5), {"index": jax.ShapeDtypeStruct((2,), jnp.int32)}, 0)
    >>> variables = objective.init(jax.random.key(0), context)
    >>> jax.tree.map(jnp.shape, variables.state)["bank"]
    {'student': (5, 4), 'teacher': (5, 4)}
    """
    sizes("crd", negatives=negatives, embedding_size=embedding_size)
    positive("crd", temperature=temperature)
    share("crd", momentum=momentum)
    labels = np.asarray(labels)
    tables, num_data, paths = _class_tables(labels), labels.size, (student, teacher)

    def init(key: Array, context: Context) -> ObjectiveVars:
        place = lookup(context, index_path)
        if not jnp.issubdtype(place.dtype, jnp.integer) or len(place.shape) != 1:
            raise ValueError(f"crd, {index_path}: expected integers [batch], got {checks.shape(place)}.")
        rows_within("crd", context, place, num_data, "labels")
        check_features(context, paths)
        keys = jax.random.split(key, 4)
        limit = (3 / embedding_size) ** 0.5  # the expected square norm of a row is 1
        bank = {
            side: jax.random.uniform(k, (num_data, embedding_size), jnp.float32, -limit, limit)
            for side, k in zip(SIDES, keys[2:], strict=True)
        }
        unknown = jnp.full(2, -jnp.inf, jnp.float32)
        state = {"bank": bank, "log_normalizer": unknown, "classes": jax.tree.map(jnp.asarray, tables)}
        return ObjectiveVars(init_embeddings(keys[:2], context, paths, embedding_size), state)

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        mask = batches.example_mask(context.batch)
        place = jnp.asarray(lookup(context, index_path))
        rows_within("crd", context, place, num_data, "labels")
        where = jnp.ones(place.shape, bool) if mask is None else mask
        place = row_index(place, where, num_data)
        embedded = embed(params, context, paths)
        negative = _negatives(key, context, place, state["classes"], negatives)
        candidates = jnp.concatenate([place[:, None], negative], axis=1)

        def logits(v: Array, bank: Array) -> Array:
            products = jnp.matmul(v, bank.T, precision=jax.lax.Precision.HIGHEST)
            return jnp.take_along_axis(products, candidates, axis=1) / temperature

        both = [logits(embedded[side], state["bank"][other]) for side, other in zip(SIDES, SIDES[::-1], strict=True)]
        # Z stays -inf until a batch with an unmasked example sets it; scores then use 0 in its place.
        first = jnp.stack([_log_mean(x, where, context.axis_name) for x in both]) + math.log(num_data)
        known = state["log_normalizer"]
        normalizer = jnp.where(known > -jnp.inf, known, first.astype(known.dtype))
        safe = jnp.where(normalizer > -jnp.inf, normalizer, 0)
        values = compare(both[0] - safe[0], mask) + compare(both[1] - safe[1], mask)
        if key is not None:
            bank = {side: update(state["bank"][side], embedded[side], place, where, context) for side in SIDES}
            state = {**state, "bank": bank, "log_normalizer": normalizer}
        return reduce_values(values, mask, weight, context, state)

    def compare(log_scores: Array, mask: Array | None) -> Array:
        # A positive's score may underflow. There the loss is linear in its logarithm, so the score is clamped to the
        # smallest normal number and the clamped difference is subtracted from the loss.
        floor = jnp.log(jnp.finfo(log_scores.dtype).tiny) + 1
        missing = jnp.minimum(log_scores[:, 0] - floor, 0)
        scores = jnp.exp(jnp.maximum(log_scores, floor))
        return losses.contrastive_nce(scores, num_data=num_data, where=mask) - missing

    def update(bank: Array, v: Array, place: Array, where: Array, context: Context) -> Array:
        v, place, where = (gather(x, context.axis_name) for x in (jax.lax.stop_gradient(v), place, where))
        rows = unit(momentum * bank[place] + (1 - momentum) * v)
        return bank.at[write_index(place, where, num_data)].set(rows.astype(bank.dtype), mode="drop")

    return Objective(init, apply)


def _class_tables(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Sorts examples by class: their order, and each one's run (start, size) in it.

    The examples of other classes than one are all but a contiguous run, so `_negatives` draws one of them as a random
    number with a shift. The tables are state, since arrays that a step closes over become constants of its program.
    """
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not labels.size:
        raise ValueError(
            f"crd, labels: expected the integer class of every training example [N], got {labels.dtype}"
            f"{list(labels.shape)}."
        )
    classes, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            f"crd, labels: expected at least two classes, since negatives are of other classes, got {len(classes)}."
        )
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    tables = {"order": np.argsort(inverse, kind="stable"), "start": starts[inverse], "size": sizes[inverse]}
    return {name: table.astype(np.int32) for name, table in tables.items()}


def _negatives(key: Array | None, context: Context, places: Array, classes: dict[str, Array], number: int) -> Array:
    """Draws examples of other classes uniformly, with replacement ``[batch, number]``."""
    keys = example_keys(jax.random.key(0) if key is None else key, context, places.shape[0])
    order, start, size = (classes[name] for name in ("order", "start", "size"))

    def draw(key: Array, place: Array) -> Array:
        at = jax.random.randint(key, (number,), 0, len(order) - size[place])
        return order[jnp.where(at < start[place], at, at + size[place])]  # skips the run of the example's own class

    return jax.vmap(draw)(keys, places)


def _log_mean(logits: Array, where: Array, axis_name: str | None) -> Array:
    """Log of the mean of ``exp(logits)`` over all unmasked rows; -inf without any."""
    logits = jnp.where(where[:, None], jax.lax.stop_gradient(logits), -jnp.inf)
    largest = jnp.max(logits, initial=-jnp.inf)
    largest = largest if axis_name is None else jax.lax.pmax(largest, axis_name)
    largest = jnp.where(largest > -jnp.inf, largest, 0)
    total, count = jnp.sum(jnp.exp(logits - largest)), jnp.sum(where) * logits.shape[1]
    if axis_name is not None:
        total, count = (jax.lax.psum(x, axis_name) for x in (total, count))
    return jnp.log(total / jnp.maximum(count, 1)) + largest
