"""A learned gate over the branches of one network, whose weighted sum teaches them (ONE)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import checks
from jaxkd.objectives.between import between
from jaxkd.objectives.compose import combine, counted, lookup
from jaxkd.objectives.layers import connector, connector_init
from jaxkd.objectives.parts import with_parts
from jaxkd.types import Array, Context, LossVars, Objective

__all__ = ["gated"]

_ENSEMBLE = "ensemble"


def gated(members: Mapping[str, str], feature: str, *, own: Objective, taught: Objective) -> Objective:
    """Branches that learn from their gated ensemble: ``z_e = Σ_i g_i z_i``, g a learned softmax over the branches.

    ``own(z_e) + Σ_i own(z_i) + Σ_i taught(z_i ← z_e)``: with the cross-entropy and T² KL, equation 8 of Lan, Zhu &
    Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018 (ONE). The gate is a linear map of the
    feature that the branches share, averaged over its positions, with BatchNorm and a ReLU before the softmax, as
    there. It learns by the ensemble's own loss, which reaches the branches too; what the ensemble teaches has no
    way back into it. The authors' code gives the linear map a bias, which BatchNorm takes away again, adds 1e-7 to the
    ensemble's probabilities, and raises the weight of what is taught slowly (`jaxkd.schemes.ramp_up`).

    Args:
      members: the branches by the names that their metrics get, with whose outputs they are: ``""`` for the model's
        own. ``{"first": "", "second": "second"}`` are a model and its exit ``second``.
      feature: path of the shared feature ``[batch, ..., features]``, such as ``"student/stage2"``.
      own: what each branch and the ensemble minimise, on ``student/logits``, usually the cross-entropy.
      taught: what a branch minimises beside the ensemble, which has the teacher's place.

    Returns:
      An `Objective` that owns the gate, ``parts``, and what the given ones own, for each branch anew. Its metrics are
      those of the terms under ``own/NAME``, ``own/ensemble`` and ``taught/NAME``.

    Raises:
      ValueError: there are no members, or one is named ``ensemble``; and when it is initialised: a path does not exist,
        or the logits' shapes differ.

    >>> from jaxkd import losses
    >>> from jaxkd.objectives.compose import term
    >>> own = term(losses.cross_entropy, "student/logits", "batch/label")
    >>> taught = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=3.0)
    >>> objective = gated({"a": "", "b": "b"}, "student/f", own=own, taught=taught)
    >>> outputs = {"logits": jnp.zeros((2, 3)), "b/logits": jnp.ones((2, 3)), "f": jnp.ones((2, 4))}
    >>> made = objective.init(jax.random.key(0), Context(outputs, {}, {"label": jnp.array([0, 1])}, 0))
    >>> jax.tree.map(jnp.shape, made.params["parts"])
    {'kernel': (4, 2), 'norm': {'bias': (2,), 'scale': (2,)}}
    """
    if not members or _ENSEMBLE in members:
        got = f"one that is named {_ENSEMBLE!r}" if members else "none"
        raise ValueError(f"gated: expected members, under other names than {_ENSEMBLE!r}, got {got}.")
    paths = [f"student/{part}/logits" if part else "student/logits" for part in members.values()]

    def init(key: Array, context: Context) -> LossVars:
        same_shape("gated", context, paths)
        shared = lookup(context, feature)
        if len(shared.shape) < 2 or not jnp.issubdtype(shared.dtype, jnp.floating):
            raise ValueError(f"gated, {feature}: expected a floating-point [batch, ...], got {checks.shape(shared)}.")
        return connector_init(key, shared.shape[-1], len(paths))

    def make(params: Any, state: Any, context: Context, key: Array | None) -> tuple[dict[str, Array], Any]:
        pooled = counted(context, lookup(context, feature))
        pooled = pooled.reshape(pooled.shape[0], math.prod(pooled.shape[1:-1]), pooled.shape[-1]).mean(axis=1)
        energy, state = connector(params, state, pooled, context, train=key is not None)
        gate = jax.nn.softmax(jax.nn.relu(energy), axis=-1)
        return {f"{_ENSEMBLE}/logits": _mixed(context, paths, gate)}, state

    names = list(members)
    terms = combine(
        own=combine(
            **{name: between(own, student=members[name]) for name in names}, ensemble=between(own, student=_ENSEMBLE)
        ),
        taught=combine(**{name: between(taught, student=members[name], teacher=_ENSEMBLE) for name in names}),
    )
    return with_parts(init, make, terms)


def _mixed(context: Context, paths: list[str], gate: Array) -> Array:
    """``Σ_i g_i z_i``; a class that a branch excludes (-inf) is excluded, and says nothing about the gate."""
    logits = jnp.stack([counted(context, lookup(context, path)) for path in paths], axis=-1)
    logits = logits.astype(jnp.result_type(jnp.float32, logits))
    finite = jnp.isfinite(logits)
    gate = jnp.expand_dims(gate, tuple(range(1, logits.ndim - 1)))
    mixed = jnp.sum(gate * jnp.where(finite, logits, 0), axis=-1)
    return jnp.where(jnp.all(finite, axis=-1), mixed, -jnp.inf)


def same_shape(name: str, context: Context, paths: list[str]) -> tuple[int, ...]:
    """The shape that all these logits have.

    Raises:
      ValueError: a path does not exist, or the shapes differ.

    >>> same_shape("f", Context({"logits": jnp.ones((2, 3))}, {}, {}, 0), ["student/logits"])
    (2, 3)
    """
    found = {path: lookup(context, path) for path in paths}
    shapes = {tuple(x.shape) for x in found.values()}
    if len(shapes) != 1:
        raise ValueError(f"{name}: expected logits of one shape, got {checks.describe(found)}.")
    return shapes.pop()
