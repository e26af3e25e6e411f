"""Standardized features of a foundation model, behind a head of its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import losses
from jaxkd._core.batch_norm import share_of, statistics
from jaxkd._core.batches import lookup
from jaxkd.objectives import _checks, layers
from jaxkd.objectives._compose import combine, replace, term
from jaxkd.objectives._projection import with_projection
from jaxkd.objectives._tokens import expand, feature_mask, mask_feature
from jaxkd.types import Array, Context, Objective, ObjectiveVars, Schedule

_EPSILON = 1e-6  # added to variances


def foundation_features(
    student: str,
    teacher: str,
    *,
    cosine: float | Array | Schedule = 0.9,
    smooth_l1: float | Array | Schedule = 0.1,
    hidden_size: int | None = None,
    mean: Array | None = None,
    std: Array | None = None,
) -> Objective:
    """Cosine and smooth L1 distance to a teacher's standardized features.

    Also known as: AM-RADIO (agglomerative model).

    ``cosine · (1 − cos(h(F_s), F̂_t)) + smooth_l1 · mean huber(h(F_s) − F̂_t)``, the mean over positions, with ``F̂ = (F −
    μ) / σ`` for each channel. Ranzinger et al., "AM-RADIO: Agglomerative Vision Foundation Model -- Reduce All Domains
    Into One", CVPR 2024, equation 3 for maps, with the paper's weights; for summaries (class tokens), equation 2, it is
    ``cosine=1, smooth_l1=0``. Each teacher has an objective, and so a head and statistics, of its own: the sum over
    teachers is `combine`. The paper does not standardize; it is the simplest form of what the authors add in "PHI-S:
    Distribution Balancing for Label-Free Multi-Teacher Distillation", 2024.

    The head h is ``dense(gelu(norm(dense(F_s))))`` with a LayerNorm. Its result is resized to a larger or smaller map
    of the teacher by linear interpolation, so that patches of a transformer and maps of a convolutional network are
    compared in both directions.

    Args:
      student: path of the student's feature: a map ``[batch, height, width, channels]``, tokens or a vector.
      teacher: path of the teacher's feature. Maps may differ in size; other features differ in channels alone.
      cosine: weight of the cosine distance. A term of weight 0 is left out.
      smooth_l1: weight of the smooth L1 distance, with δ = 1.
      hidden_size: features between the head's two products; by default the teacher's.
      mean: μ of the teacher's channels, computed before; by default the mean of all features so far, as state.
      std: σ of the teacher's channels; given where the mean is.

    Returns:
      An `Objective` with the head's parameters and, without ``mean``, the statistics of the teacher's features over
      all unmasked examples of the training so far, this step's included, of all devices.

    Raises:
      ValueError: both weights are 0, or one of ``mean`` and ``std`` is missing; from ``init``: a path does not exist,
        or the features do not fit.

    >>> both = combine(
    ...     summary=foundation_features("student/class_token", "teacher/a/pooled", cosine=1.0, smooth_l1=0.0),
    ...     maps=foundation_features("student/patches", "teacher/b/stage3"),
    ... )
    >>> student = {"class_token": jnp.ones((2, 4)), "patches": jnp.ones((2, 4, 4, 4))}
    >>> context = Context(student, {"a/pooled": jnp.ones((2, 3)), "b/stage3": jnp.ones((2, 2, 2, 5))}, {}, 0)
    >>> made = jax.eval_shape(lambda: both.init(jax.random.key(0), context))
    >>> made.params["maps"]["output"]["kernel"].shape, made.state["summary"]["mean"].shape
    ((5, 5), (3,))
    """
    if (mean is None) != (std is None):
        raise ValueError("foundation_features: expected both mean and std of the teacher's channels, or neither.")
    if hidden_size is not None:
        _checks.sizes("foundation_features", hidden_size=hidden_size)
    terms = {"cosine": (losses.hidden_cosine, cosine), "smooth_l1": (_smooth_l1, smooth_l1)}
    used = {
        name: term(loss, student, teacher, weight=weight)
        for name, (loss, weight) in terms.items()
        if callable(weight) or not isinstance(weight, (int, float)) or weight != 0
    }
    if not used:
        raise ValueError("foundation_features: expected a weight other than 0, got 0 for both terms.")

    def init(key: Array, context: Context) -> ObjectiveVars:
        ours, theirs = lookup(context, student).shape, lookup(context, teacher).shape
        _check_shapes(ours, theirs)
        if mean is not None and std is not None and not np.shape(mean) == np.shape(std) == theirs[-1:]:
            raise ValueError(
                f"foundation_features: expected mean and std of the teacher's {theirs[-1]} channels, got "
                f"{list(np.shape(mean))} and {list(np.shape(std))}."
            )
        inner = hidden_size or theirs[-1]
        first, second = jax.random.split(key)
        head = {
            "hidden": layers.dense_init(first, ours[-1], inner),
            "norm": {"scale": jnp.ones(inner, jnp.float32), "bias": jnp.zeros(inner, jnp.float32)},
            "output": layers.dense_init(second, inner, theirs[-1]),
        }
        if mean is not None:
            return ObjectiveVars(head)
        zeros = {name: jnp.zeros(theirs[-1], jnp.float32) for name in ("mean", "var")}
        return ObjectiveVars(head, {**zeros, "count": jnp.zeros((), jnp.float32)})

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        feature, target = (mask_feature(context, lookup(context, path)) for path in (student, teacher))
        target = target.astype(jnp.promote_types(target.dtype, jnp.float32))
        if mean is not None:
            center, deviation = jnp.asarray(mean, target.dtype), jnp.asarray(std, target.dtype)
        else:
            state = state if key is None else _update(state, context, target)
            # Before the first step there are no statistics.
            center, deviation = state["mean"], jnp.where(state["count"] > 0, jnp.sqrt(state["var"] + _EPSILON), 1)
        target = (target - _row(center, target)) / _row(deviation, target)
        return replace(context, {student: _resize(_head(params, feature), target.shape), teacher: target}), state

    return with_projection(init, change, combine(**used))


def _check_shapes(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    """Raises unless features are maps, or have the same positions."""
    maps = len(student) == len(teacher) == 4
    if len(student) < 2 or (student[0] != teacher[0] if maps else student[:-1] != teacher[:-1]):
        raise ValueError(
            "foundation_features: expected two maps [batch, height, width, channels], or tokens or vectors that differ "
            f"in channels alone; got {list(student)} for the student and {list(teacher)} for the teacher. Patch tokens "
            "are reshaped to a map by wrappers.with_outputs."
        )


def _head(params: Any, feature: Array) -> Array:
    """Returns ``dense(gelu(norm(dense(x))))``."""
    x = layers.dense(params["hidden"], feature)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + _EPSILON)
    x = x * _row(params["norm"]["scale"], x) + _row(params["norm"]["bias"], x)
    return layers.dense(params["output"], jax.nn.gelu(x, approximate=False))


def _update(state: Any, context: Context, target: Array) -> Any:
    """Returns the mean and variance of all features so far, and their number.

    Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance", 1983, equation 2.1, for two sets.
    """
    mask = feature_mask(context, target.shape)
    examples, tokens = (mask, None) if mask is None or mask.ndim == 1 else (None, expand(mask, target.ndim))
    whole = share_of(examples, context.axis_name, None if mask is None else mask.shape[0], count=1)
    mean, var, added = (x[0] for x in statistics(target, -1, whole, fast=False, mask=tokens))
    added = jnp.max(added)  # equally many of each channel
    count = state["count"] + added
    share, moved = added / jnp.maximum(count, 1), mean - state["mean"]
    new = {
        "mean": state["mean"] + share * moved,
        "var": (1 - share) * state["var"] + share * var + share * (1 - share) * moved**2,
        "count": count,
    }
    return jax.tree.map(lambda x, old: jax.lax.stop_gradient(x).astype(old.dtype), new, state)


def _resize(x: Array, shape: tuple[int, ...]) -> Array:
    """Returns a map in the size of another one; other features as they are."""
    if x.ndim != 4 or x.shape[1:3] == shape[1:3]:
        return x
    return jax.image.resize(x, (x.shape[0], *shape[1:3], x.shape[-1]), "linear")


def _row(x: Array, like: Array) -> Array:
    return x.reshape((1,) * (like.ndim - 1) + (-1,))


def _smooth_l1(student: Array, teacher: Array, *, where: Array | None = None) -> Array:
    """Returns the Huber loss with δ = 1 of each position, averaged over channels."""
    if where is not None:
        kept = expand(where, student.ndim)
        student, teacher = (jnp.where(kept, x, 0) for x in (student, teacher))
    return jnp.mean(optax.huber_loss(student, teacher, delta=1.0), axis=-1)
