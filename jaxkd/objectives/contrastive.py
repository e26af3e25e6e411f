"""Contrastive representation distillation (CRD), with a memory bank, with a queue, and within the batch.

All three learn a linear embedding of either network's feature and ask of each example that its two embeddings find
one another among those of other classes. They differ in where the others come from: `crd` remembers an embedding of
every training example, as published; `crd_queue` those of the last batches, in a fixed amount of memory; and
`crd_in_batch` has only the batch.

What is remembered is the same whatever the number of devices: negatives are drawn by an example's place in the global
batch, and all devices write the same rows.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import checks, losses
from jaxkd.objectives.compose import Schedule, counted, lookup, weighted
from jaxkd.objectives.draws import example_keys
from jaxkd.objectives.layers import dense, dense_init
from jaxkd.types import Array, Context, LossOut, LossVars, Objective

__all__ = ["crd", "crd_in_batch", "crd_queue"]

_SIDES = ("student", "teacher")


def crd(
    student: str,
    teacher: str,
    labels: Any,
    *,
    negatives: int = 16384,
    features: int = 128,
    temperature: float | Array = 0.07,
    momentum: float = 0.5,
    weight: float | Array | Schedule = 1.0,
    index: str = "batch/index",
) -> Objective:
    """Contrastive representation distillation with a memory bank of all N training examples.

    ``L = h(s; bank_t) + h(t; bank_s)``, h the noise-contrastive estimation of `jaxkd.losses.contrastive_nce` on
    ``exp(⟨v, bank_j⟩ / T) / Z`` for the example's own row of the bank and K rows of other classes. Tian, Krishnan &
    Isola, "Contrastive Representation Distillation", ICLR 2020, equations 17 to 19 of its appendix. Z is
    ``N · mean exp(·)`` of the first batch, and frozen after it; there is one for each direction, kept as its logarithm.
    After scoring, the rows of the batch become ``n(m · bank + (1 − m) · v)``.

    As in the authors' code, which this follows: the features are flattened, embedded linearly and normalised, both
    embeddings are learned, and the banks begin as uniform random numbers. Unlike it: the K negatives are drawn with
    replacement; one mean runs over the batch; and where an example is twice in a batch, the last one in the order of
    the batch is written (there, and in popular copies, whichever the hardware writes last).

    Scores are products of the embeddings with the whole bank, from which those of the drawn rows are picked: the
    ``[batch, K, features]`` array of the drawn rows, 0.5 GiB for K = 16384, never exists. The banks are state, two
    float32 ``[N, features]``; ``jaxkd.parallel.shard(kd, mesh, rules=...)`` splits them over the devices.

    Args:
      student: path of the student's feature ``[batch, ...]``, usually the pooled one.
      teacher: path of the teacher's.
      labels: the class of every training example ``[N]``, integers on the host; ``batch["index"]`` counts in it. An
        index outside of it gives NaN, as a label outside of the classes does.
      negatives: K.
      features: of the embeddings.
      temperature: T.
      momentum: m, of the bank's rows.
      weight: a number, or an optax schedule of the step. The published weight is 0.8.
      index: path of the examples' positions in ``labels``, integers ``[batch]``.

    Returns:
      An `Objective` that owns both embeddings, and remembers both banks and Z. An evaluation (without a key) draws the
      same negatives each time and changes nothing; before the first step it has the Z of its own batch. It means
      something for training examples alone, since no other has a row in the bank.

    Raises:
      ValueError: the labels are not integers ``[N]``, or one class has all of them, or a number is not positive; and
        when it is initialised: a path does not exist, or the index is not integers ``[batch]``.

    >>> objective = crd("student/f", "teacher/f", np.array([0, 0, 1, 1, 2]), negatives=8, features=4)
    >>> f = lambda size: {"f": jax.ShapeDtypeStruct((2, size), jnp.float32)}
    >>> context = Context(f(3), f(5), {"index": jax.ShapeDtypeStruct((2,), jnp.int32)}, 0)
    >>> made = objective.init(jax.random.key(0), context)
    >>> jax.tree.map(jnp.shape, made.state)["bank"]
    {'student': (5, 4), 'teacher': (5, 4)}
    """
    _positive("crd", negatives=negatives, features=features, temperature=temperature)
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not labels.size:
        raise ValueError(
            f"crd, labels: expected the integer class of every training example [N], got {labels.dtype}"
            f"{list(labels.shape)}."
        )
    # Examples sorted by class: those of other classes than one are all but a run, so a draw among them is a shift.
    classes, of_class, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            f"crd, labels: expected at least two classes, since negatives are of other classes, got {len(classes)}."
        )
    num_data = labels.size
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    tables = {  # part of the state: closed over, they would be constants of every program
        "order": np.argsort(of_class, kind="stable").astype(np.int32),
        "start": starts[of_class].astype(np.int32),  # of the run of each example's class
        "size": sizes[of_class].astype(np.int32),
    }

    def init(key: Array, context: Context) -> LossVars:
        place = lookup(context, index)
        if not jnp.issubdtype(place.dtype, jnp.integer) or len(place.shape) != 1:
            raise ValueError(f"crd, {index}: expected integers [batch], got {checks.shape(place)}.")
        embeddings, (bank_s, bank_t) = _embeddings(key, context, (student, teacher), features)
        limit = (3 / features) ** 0.5
        bank = {
            side: jax.random.uniform(k, (num_data, features), jnp.float32, -limit, limit)
            for side, k in zip(_SIDES, (bank_s, bank_t), strict=True)
        }
        unknown = jnp.full(2, -jnp.inf, jnp.float32)
        state = {"bank": bank, "log_normalizer": unknown, "classes": jax.tree.map(jnp.asarray, tables)}
        return LossVars(embeddings, state)

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        places = jnp.asarray(lookup(context, index)).astype(jnp.int32)
        mask = checks.example_mask(context.batch)
        where = jnp.ones(places.shape, bool) if mask is None else mask
        places = jnp.where(where, jnp.where(places < 0, num_data, places), 0)  # a negative one would count from the end
        embedded = _embed(params, context, (student, teacher))
        drawn = _negatives(key, context, places, state["classes"], negatives)
        candidates = jnp.concatenate([places[:, None], drawn], axis=1)

        def logits(v: Array, bank: Array) -> Array:
            products = jnp.matmul(v, bank.T, precision=jax.lax.Precision.HIGHEST)
            return jnp.take_along_axis(products, candidates, axis=1) / temperature

        found = (
            logits(embedded["student"], state["bank"]["teacher"]),
            logits(embedded["teacher"], state["bank"]["student"]),
        )
        fresh = jnp.stack([_log_mean(x, where, context.axis_name) for x in found]) + math.log(num_data)
        old = state["log_normalizer"]
        normalizer = jnp.where(old > -jnp.inf, old, fresh.astype(old.dtype))
        safe = jnp.where(normalizer > -jnp.inf, normalizer, 0)
        values = compare(found[0] - safe[0], mask) + compare(found[1] - safe[1], mask)
        if key is not None:
            written = {side: write(state["bank"][side], embedded[side], places, where, context) for side in _SIDES}
            state = {**state, "bank": written, "log_normalizer": normalizer}
        return weighted(values, mask, weight, context, state)

    def compare(log_scores: Array, mask: Array | None) -> Array:
        # A positive too unlikely for a number of its own still has its loss, which is linear in the logarithm there.
        floor = jnp.log(jnp.finfo(log_scores.dtype).tiny) + 1
        missing = jnp.minimum(log_scores[:, 0] - floor, 0)
        scores = jnp.exp(jnp.maximum(log_scores, floor))
        return losses.contrastive_nce(scores, num_data=num_data, where=mask) - missing

    def write(bank: Array, v: Array, places: Array, where: Array, context: Context) -> Array:
        v, places, where = (_gather(x, context.axis_name) for x in (jax.lax.stop_gradient(v), places, where))
        later = jnp.arange(len(places))[:, None] < jnp.arange(len(places))[None, :]
        again = jnp.any(later & where[None, :] & (places[:, None] == places[None, :]), axis=1)
        rows = _unit(momentum * bank[places] + (1 - momentum) * v)
        return bank.at[jnp.where(where & ~again, places, num_data)].set(rows.astype(bank.dtype), mode="drop")

    return Objective(init, apply)


def crd_queue(
    student: str,
    teacher: str,
    *,
    size: int = 4096,
    features: int = 128,
    temperature: float | Array = 0.07,
    weight: float | Array | Schedule = 1.0,
    labels: str | None = "batch/label",
) -> Objective:
    """Contrastive distillation against a queue of the last embeddings, in memory that does not grow with the data.

    ``−log e^{⟨s_i, t_i⟩/T} / (e^{⟨s_i, t_i⟩/T} + Σ_q e^{⟨s_i, t_q⟩/T})`` over the queued examples q of other classes,
    and the same with student and teacher exchanged. The softmax form of CRD's objective (Tian, Krishnan & Isola, ICLR
    2020) with the first-in-first-out queue of He et al., "Momentum Contrast", CVPR 2020, equation 1. It needs neither
    N nor the examples' positions. After scoring, the batch's embeddings replace the oldest.

    Args:
      student: path of the student's feature ``[batch, ...]``.
      teacher: path of the teacher's.
      size: of the queue, at least that of the global batch.
      features: of the embeddings.
      temperature: T.
      weight: a number, or an optax schedule of the step.
      labels: path of integer classes ``[batch]``, so that no negative is of the anchor's class; None keeps all.

    Returns:
      An `Objective` that owns both embeddings and remembers the queue. While the queue is empty the loss is 0. An
      evaluation (without a key) changes nothing.

    Raises:
      ValueError: a number is not positive; and when it is initialised or applied: a path does not exist, the labels
        are not integers ``[batch]``, or the batch is larger than the queue.

    >>> objective = crd_queue("student/f", "teacher/f", size=6, features=4, labels=None)
    >>> features = {"f": jnp.ones((2, 3))}
    >>> context = Context(features, features, {}, 0)
    >>> made = objective.init(jax.random.key(0), context)
    >>> out = objective.apply(made.params, made.state, context, jax.random.key(1))
    >>> out.value, out.state["written"]
    (Array(0., dtype=float32), Array(2, dtype=int32))
    """
    _positive("crd_queue", size=size, features=features, temperature=temperature)

    def init(key: Array, context: Context) -> LossVars:
        embeddings, _ = _embeddings(key, context, (student, teacher), features)
        if labels is not None:
            _labels(context, labels)
        batch = lookup(context, student).shape[0]
        if batch > size:
            raise ValueError(f"crd_queue, size: expected at least the batch of {batch}, got {size}.")
        state = {
            "queue": {side: jnp.zeros((size, features), jnp.float32) for side in _SIDES},
            "label": jnp.zeros(size, jnp.int32),
            "written": jnp.zeros((), jnp.int32),
        }
        return LossVars(embeddings, state)

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        embedded = _embed(params, context, (student, teacher))
        mask = checks.example_mask(context.batch)
        batch = embedded["student"].shape[0]
        where = jnp.ones(batch, bool) if mask is None else mask
        label = jnp.zeros(batch, jnp.int32)
        if labels is not None:
            label = jnp.asarray(_labels(context, labels)).astype(jnp.int32)
        negative = jnp.broadcast_to((jnp.arange(size) < state["written"])[None, :], (batch, size))
        if labels is not None:
            negative = negative & (label[:, None] != state["label"][None, :])

        def cross_entropy(anchor: Array, positive: Array, queue: Array) -> Array:
            products = jnp.matmul(anchor, queue.T, precision=jax.lax.Precision.HIGHEST)
            own = jnp.sum(anchor * positive, axis=1, keepdims=True)
            logits = jnp.concatenate([own, jnp.where(negative, products, -jnp.inf)], axis=1) / temperature
            return losses.cross_entropy(logits, jnp.zeros(batch, jnp.int32), where=mask)

        s, t, queue = embedded["student"], embedded["teacher"], state["queue"]
        values = cross_entropy(s, t, queue["teacher"]) + cross_entropy(t, s, queue["student"])

        if key is not None:
            state = write(state, embedded, label, where, context)
        return weighted(values, mask, weight, context, state)

    def write(state: Any, embedded: dict[str, Array], label: Array, where: Array, context: Context) -> Any:
        where, label = _gather(where, context.axis_name), _gather(label, context.axis_name)
        if len(where) > size:
            raise ValueError(f"crd_queue, size: expected at least the global batch of {len(where)}, got {size}.")
        place = jnp.where(where, (state["written"] + jnp.cumsum(where, dtype=jnp.int32) - 1) % size, size)
        queue = {}
        for side, v in embedded.items():
            old, rows = state["queue"][side], _gather(jax.lax.stop_gradient(v), context.axis_name)
            queue[side] = old.at[place].set(rows.astype(old.dtype), mode="drop")
        # Once all places are taken only the next one matters; this keeps it and never overflows.
        written = state["written"] + jnp.sum(where, dtype=jnp.int32)
        written = jnp.where(written >= 2 * size, written - size, written)
        return {"queue": queue, "label": state["label"].at[place].set(label, mode="drop"), "written": written}

    return Objective(init, apply)


def crd_in_batch(
    student: str,
    teacher: str,
    *,
    features: int = 128,
    temperature: float | Array = 0.07,
    weight: float | Array | Schedule = 1.0,
    labels: str | None = "batch/label",
) -> Objective:
    """Contrastive distillation within the batch: `jaxkd.losses.info_nce` of learned embeddings, in both directions.

    Nothing is remembered. The objective of CRD (Tian, Krishnan & Isola, ICLR 2020) with the other examples of the
    global batch, of other classes, as negatives: van den Oord, Li & Vinyals, 2018, equation 4.

    Args:
      student: path of the student's feature ``[batch, ...]``.
      teacher: path of the teacher's.
      features: of the embeddings.
      temperature: T.
      weight: a number, or an optax schedule of the step.
      labels: path of integer classes ``[batch]``, so that no negative is of the anchor's class; None keeps all.

    Returns:
      An `Objective` that owns both embeddings.

    Raises:
      ValueError: a number is not positive; and when it is initialised or applied: a path does not exist, or the labels
        are not integers ``[batch]``.

    >>> objective = crd_in_batch("student/f", "teacher/f", features=4, labels=None)
    >>> features = {"f": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    >>> made = objective.init(jax.random.key(0), Context(features, features, {}, 0))
    >>> jax.tree.map(jnp.shape, made.params)["student"]
    {'bias': (4,), 'kernel': (3, 4)}
    """
    _positive("crd_in_batch", features=features, temperature=temperature)

    def init(key: Array, context: Context) -> LossVars:
        if labels is not None:
            _labels(context, labels)
        return LossVars(_embeddings(key, context, (student, teacher), features)[0])

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        del key
        embedded = _embed(params, context, (student, teacher))
        mask = checks.example_mask(context.batch)
        tags = () if labels is None else (jnp.asarray(_labels(context, labels)),)
        options: dict[str, Any] = {"temperature": temperature, "where": mask, "axis_name": context.axis_name}
        s, t = embedded["student"], embedded["teacher"]
        values = losses.info_nce(s, t, *tags, **options) + losses.info_nce(t, s, *tags, **options)
        return weighted(values, mask, weight, context, state)

    return Objective(init, apply)


# --- what the three share ---------------------------------------------------------------------------------------------


def _negatives(key: Array | None, context: Context, places: Array, classes: dict[str, Array], number: int) -> Array:
    """For each example, so many of other classes, each as likely as any other ``[batch, number]``."""
    keys = example_keys(jax.random.key(0) if key is None else key, context, places.shape[0])
    order, start, size = (classes[name] for name in ("order", "start", "size"))

    def one(key: Array, place: Array) -> Array:
        at = jax.random.randint(key, (number,), 0, len(order) - size[place])
        return order[jnp.where(at < start[place], at, at + size[place])]

    return jax.vmap(one)(keys, places)


def _embeddings(
    key: Array, context: Context, paths: tuple[str, str], features: int
) -> tuple[dict[str, Any], tuple[Array, Array]]:
    """Parameters of a linear map of either network's flattened feature, and two keys that are left."""
    *keys, first, second = jax.random.split(key, 4)
    params = {}
    for side, path, k in zip(_SIDES, paths, keys, strict=True):
        found = lookup(context, path)
        if len(found.shape) < 2 or not jnp.issubdtype(found.dtype, jnp.floating):
            raise ValueError(f"{path}: expected a floating-point feature [batch, ...], got {checks.shape(found)}.")
        params[side] = dense_init(k, math.prod(found.shape[1:]), features)
    return params, (first, second)


def _embed(params: Any, context: Context, paths: tuple[str, str]) -> dict[str, Array]:
    """Unit vectors ``[batch, features]`` of either side."""
    found = {}
    for side, path in zip(_SIDES, paths, strict=True):
        x = counted(context, jnp.asarray(lookup(context, path)))
        found[side] = _unit(dense(params[side], x.reshape(x.shape[0], math.prod(x.shape[1:]))))
    return found


def _unit(x: Array) -> Array:
    """Rows over their norm; one too small for a direction is 0, and has no slope."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    present = square > 1e-24
    return jnp.where(present, x * jax.lax.rsqrt(jnp.where(present, square, 1)), 0)


def _labels(context: Context, path: str) -> Array:
    label = lookup(context, path)
    if not jnp.issubdtype(label.dtype, jnp.integer) or len(label.shape) != 1:
        raise ValueError(f"{path}: expected integer classes [batch], got {checks.shape(label)}.")
    return label


def _gather(x: Array, axis_name: str | None) -> Array:
    """All devices' rows, as a sum, which makes it known to a checked `jax.shard_map` that all have the same."""
    if axis_name is None:
        return x
    size = x.shape[0]
    whole = jnp.zeros((jax.lax.axis_size(axis_name) * size, *x.shape[1:]), jnp.int32 if x.dtype == bool else x.dtype)
    at = (jax.lax.axis_index(axis_name) * size,) + (0,) * (x.ndim - 1)
    return jax.lax.psum(jax.lax.dynamic_update_slice(whole, x.astype(whole.dtype), at), axis_name).astype(x.dtype)


def _log_mean(logits: Array, where: Array, axis_name: str | None) -> Array:
    """The logarithm of the mean of ``exp(logits)`` over the rows that count; −∞ if none does."""
    logits = jnp.where(where[:, None], jax.lax.stop_gradient(logits), -jnp.inf)
    largest = jnp.max(logits, initial=-jnp.inf)
    largest = largest if axis_name is None else jax.lax.pmax(largest, axis_name)
    largest = jnp.where(largest > -jnp.inf, largest, 0)
    total, count = jnp.sum(jnp.exp(logits - largest)), jnp.sum(where) * logits.shape[1]
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return jnp.log(total / jnp.maximum(count, 1)) + largest


def _positive(name: str, **numbers: float | Array) -> None:
    for argument, number in numbers.items():
        if not isinstance(number, jax.core.Tracer) and not number > 0:  # NaN is not
            raise ValueError(f"{name}, {argument}: expected a positive number, got {number}.")
