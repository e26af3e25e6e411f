"""A relation between examples, of learned embeddings of the student's and the teacher's feature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.objectives.compose import Schedule, counted, lookup, replace, term
from jaxkd.objectives.layers import dense, dense_init
from jaxkd.objectives.mapped import mapped
from jaxkd.types import Array, Context, LossVars, Objective

_SIDES = ("student", "teacher")


def embedded(
    loss: Callable[..., Array],
    student: str,
    teacher: str,
    *,
    features: int = 128,
    normalize: bool = False,
    weight: float | Array | Schedule = 1.0,
    **hyperparameters: Any,
) -> Objective:
    """A loss between linear embeddings of both features, ``loss(W_s vec(F_s) + b_s, W_t vec(F_t) + b_t)``, all learned.

    With ``losses.consecutive_correlation`` it is Peng et al., "Correlation Congruence for Knowledge Distillation",
    ICCV 2019, as the common benchmark of Tian et al. 2020 runs it: 128 features on both sides, not normalised, weight
    0.02. Both embeddings learn, so that a loss which is small for small embeddings can be satisfied by shrinking them:
    combine it with the task's own loss, and normalise where the loss does not.

    Args:
      loss: of two embeddings ``[batch, features]``, one value per example: any of `jaxkd.losses.relations`, or
        `jaxkd.losses.hint_mse`, which embeddings of one size also fit.
      student: path of the student's feature ``[batch, ...]``, which is flattened.
      teacher: path of the teacher's, of any shape.
      features: the size of both embeddings.
      normalize: divides each embedding by its L2 norm; an embedding of zero stays zero.
      weight: a number, or an optax schedule of the step.
      **hyperparameters: of the loss, as for `jaxkd.term`.

    Returns:
      An `Objective` that owns ``{"student": {"kernel", "bias"}, "teacher": {"kernel", "bias"}}``.

    Raises:
      ValueError: when it is initialised: a path does not exist, or the loss does not return values per example.

    >>> from jaxkd import losses
    >>> objective = embedded(losses.distance_relation, "student/f", "teacher/f", features=8)
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(feature(2, 4, 4, 3), feature(2, 5), {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> params["student"]["kernel"].shape, params["teacher"]["kernel"].shape
    ((48, 8), (5, 8))
    """
    paths = {"student": student, "teacher": teacher}
    embeddings = {side: f"{side}/embedding" for side in _SIDES}
    compare = term(loss, *embeddings.values(), weight=weight, **hyperparameters)

    def init(key: Array, context: Context) -> LossVars:
        sizes = (math.prod(lookup(context, paths[side]).shape[1:]) for side in _SIDES)
        keys = jax.random.split(key)
        return LossVars({side: dense_init(k, n, features) for side, k, n in zip(_SIDES, keys, sizes, strict=True)})

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        del key
        values = {}
        for side in _SIDES:
            feature = counted(context, lookup(context, paths[side]))
            embedding = dense(params[side], feature.reshape(feature.shape[0], math.prod(feature.shape[1:])))
            values[embeddings[side]] = _unit(embedding) if normalize else embedding
        return replace(context, values), state

    return mapped(init, change, compare)


def _unit(x: Array) -> Array:
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(square > 0, square, 1))
