"""Distillation of a gated ensemble of branches into each branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd._core.batches import lookup
from jaxkd._core.checks import same_shape
from jaxkd.objectives._compose import combine
from jaxkd.objectives._derived_outputs import with_derived_outputs
from jaxkd.objectives._select import select
from jaxkd.objectives._tokens import mask_feature
from jaxkd.objectives.layers import connector, connector_init, position_mean
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars

_ENSEMBLE = "ensemble"


def gated_ensemble(
    members: Mapping[str, str], feature: str, *, own: Objective, taught: Objective, hold: bool = True
) -> Objective:
    """Distills the gated ensemble of a network's branches into each branch.

    Also known as: ONE (on-the-fly native ensemble).

    ``own(z_e) + Σ_i own(z_i) + Σ_i taught(z_i ← z_e)`` with ``z_e = Σ_i g_i z_i``, g a learned softmax over the
    branches: with the cross-entropy and T² KL, equation 8 of Lan, Zhu & Gong, "Knowledge Distillation by On-the-Fly
    Native Ensemble", NeurIPS 2018. As there, the gate is a linear map of the branches' shared feature, averaged over
    its positions, with BatchNorm and a ReLU before the softmax. The gradient of the ensemble's own loss reaches the
    gate and the branches, that of the distillation terms does not reach the ensemble, unless ``hold`` is False: the
    only public PyTorch code leaves it in their graph. The authors' code gives the linear map a bias, which BatchNorm
    cancels, adds 1e-7 to the ensemble's probabilities, and raises the weight of the distillation terms
    (`jaxkd.schemes.peers.ramp_up`).

    Args:
      members: names of the branches in metrics, with the names of their outputs: ``""`` for the model's own.
        ``{"first": "", "second": "second"}`` are a model and its exit ``second``.
      feature: path of the shared feature ``[batch, ..., features]``, such as ``"student/stage2"``.
      own: objective that each branch and the ensemble minimize, on ``student/logits``, usually the cross-entropy.
      taught: objective that distills the ensemble, as its teacher, into each branch. It reads ``teacher/logits``.
      hold: stops the gradient of ``taught`` at the ensemble.

    Returns:
      An `Objective` with the gate's parameters as ``parts`` and those of ``own`` and ``taught``, separate for each
      branch. Its metrics are ``own/NAME``, ``own/ensemble`` and ``taught/NAME``.

    Raises:
      ValueError: there are no members, or one is named ``ensemble``; and from ``init``: a path does not exist, or the
        logits' shapes differ.

    >>> from jaxkd import losses
    >>> from jaxkd.objectives import term
    >>> own = term(losses.cross_entropy, "student/logits", "batch/label")
    >>> taught = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=3.0)
    >>> objective = gated_ensemble({"a": "", "b": "b"}, "student/f", own=own, taught=taught)
    >>> outputs = {"logits": jnp.zeros((2, 3)), "b/logits": jnp.ones((2, 3)), "f": jnp.ones((2, 4))}
    >>> variables = objective.init(jax.random.key(0), Context(outputs, {}, {"label": jnp.array([0, 1])}, 0))
    >>> jax.tree.map(jnp.shape, variables.params["parts"])
    {'kernel': (4, 2), 'norm': {'bias': (2,), 'scale': (2,)}}
    """
    if not members or _ENSEMBLE in members:
        got = f"one named {_ENSEMBLE!r}" if members else "none"
        raise ValueError(f"gated_ensemble: expected members with names other than {_ENSEMBLE!r}, got {got}.")
    paths = [f"student/{part}/logits" if part else "student/logits" for part in members.values()]

    def init(key: Array, context: Context) -> ObjectiveVars:
        same_shape("gated_ensemble", {path: lookup(context, path) for path in paths})
        shared = lookup(context, feature)
        if len(shared.shape) < 2 or not jnp.issubdtype(shared.dtype, jnp.floating):
            raise ValueError(
                f"gated_ensemble, {feature}: expected a floating-point [batch, ...], got {checks.shape(shared)}."
            )
        return connector_init(key, shared.shape[-1], len(paths))

    def make(params: Any, state: Any, context: Context, key: Array | None) -> tuple[dict[str, Array], Any]:
        pooled = position_mean(context, lookup(context, feature))
        energy, state = connector(params, state, pooled, context, train=key is not None)
        gate = jax.nn.softmax(jax.nn.relu(energy), axis=-1)
        return {f"{_ENSEMBLE}/logits": _mixed(context, paths, gate)}, state

    each = {name: select(own, student=part) for name, part in members.items()}
    pairs = {
        name: select(taught, student=part, teacher=_ENSEMBLE) if hold else _from_ensemble(select(taught, student=part))
        for name, part in members.items()
    }
    terms = combine(own=combine(**each, ensemble=select(own, student=_ENSEMBLE)), taught=combine(**pairs))
    return with_derived_outputs(init, make, terms)


def _from_ensemble(objective: Objective) -> Objective:
    """Applies an objective to the ensemble as its teacher, which gradients reach."""

    def teaching(context: Context) -> Context:
        return context._replace(teacher={"logits": lookup(context, f"student/{_ENSEMBLE}/logits")})

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        return objective.apply(params, state, teaching(context), key)

    return Objective(lambda key, context: objective.init(key, teaching(context)), apply)


def _mixed(context: Context, paths: list[str], gate: Array) -> Array:
    """Gated sum of logits ``Σ_i g_i z_i``.

    A class that a branch excludes (-inf) is excluded from the ensemble, and contributes no gradient to the gate.
    """
    logits = jnp.stack([mask_feature(context, lookup(context, path)) for path in paths], axis=-1)
    logits = logits.astype(jnp.result_type(jnp.float32, logits))
    finite = jnp.isfinite(logits)
    gate = jnp.expand_dims(gate, tuple(range(1, logits.ndim - 1)))
    mixed = jnp.sum(gate * jnp.where(finite, logits, 0), axis=-1)
    return jnp.where(jnp.all(finite, axis=-1), mixed, -jnp.inf)
