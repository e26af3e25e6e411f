"""Variational information distillation, with a learned mean and variances."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core.batches import lookup
from jaxkd.objectives._checks import sizes
from jaxkd.objectives._compose import replace, term
from jaxkd.objectives._projection import with_projection
from jaxkd.objectives._tokens import mask_feature, tokens_as_rows
from jaxkd.objectives.layers import dense, dense_init, pool_to_match
from jaxkd.types import Array, Context, Objective, ObjectiveVars, Schedule

_LAYERS = ("first", "second", "third")
_FLOOR, _START = 1e-5, 5.0


def variational(
    student: str, teacher: str, *, hidden_size: int | None = None, weight: float | Array | Schedule = 1.0
) -> Objective:
    """Gaussian negative log-likelihood of the teacher's feature given the student's.

    Also known as: VID (variational information distillation).

    ``½ [(μ(F_s) − F_t)²/σ² + log σ²]``, averaged over the feature. Ahn et al., "Variational Information Distillation
    for Knowledge Transfer", CVPR 2019, section 2, without the likelihood's constant. The mean μ is three 1×1
    convolutions without a bias, with ReLUs between them; the variance of each channel, ``σ² = softplus(a) + 1e-5`` with
    a learned, starts at 5. The paper sums over the feature; popular code, and this objective, average. Popular code
    does not train the variances.

    Args:
      student: path of the student's feature ``[batch, ..., features]``, such as ``"student/stage2"``.
      teacher: path of the teacher's feature; channels may differ, and the larger of two maps is pooled.
      hidden_size: width of the two hidden layers; the teacher's channels by default.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` with the parameters ``{"mean": {"first", "second", "third"}, "raw_variance"}``.

    Raises:
      ValueError: from ``init``: a path does not exist, or the features do not fit.

    >>> objective = variational("student/f", "teacher/f")
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(feature(2, 8, 8, 16), feature(2, 4, 4, 32), {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> params["mean"]["first"]["kernel"].shape, params["raw_variance"].shape
    ((16, 32), (32,))
    """
    if hidden_size is not None:
        sizes("variational", hidden_size=hidden_size)
    loss = term(losses.gaussian_nll, student, teacher, "batch/variance", weight=weight)

    def init(key: Array, context: Context) -> ObjectiveVars:
        channels, targets = (lookup(context, path).shape[-1] for path in (student, teacher))
        hidden = targets if hidden_size is None else hidden_size
        widths = (channels, hidden, hidden, targets)
        keys = jax.random.split(key, len(_LAYERS))
        mean = {name: dense_init(keys[i], widths[i], widths[i + 1], bias=False) for i, name in enumerate(_LAYERS)}
        raw = math.log(math.expm1(_START - _FLOOR))  # the inverse of softplus
        return ObjectiveVars({"mean": mean, "raw_variance": jnp.full(targets, raw, jnp.float32)})

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        del key
        feature, target = (mask_feature(context, lookup(context, path)) for path in (student, teacher))
        feature, target = pool_to_match("variational", feature, target)
        for name in _LAYERS:
            feature = dense(params["mean"][name], feature if name == _LAYERS[0] else jax.nn.relu(feature))
        variance = jax.nn.softplus(params["raw_variance"]) + _FLOOR
        context = replace(context, {student: feature, teacher: target, "batch/variance": variance})
        return tokens_as_rows(context, student, teacher), state

    return with_projection(init, change, loss)
