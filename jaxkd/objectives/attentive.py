"""Targets of a peer's own, by learned attention to the others (OKDDip)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import checks, losses
from jaxkd.objectives.between import between
from jaxkd.objectives.compose import Schedule, combine, counted, lookup, term
from jaxkd.objectives.gated import same_shape
from jaxkd.objectives.layers import dense, dense_init
from jaxkd.objectives.parts import with_parts
from jaxkd.types import Array, Context, LossVars, Objective

__all__ = ["attentive"]

_TARGET = "target"


def attentive(
    peers: Sequence[str],
    leader: str,
    feature: str,
    *,
    own: Objective,
    temperature: float | Array = 3.0,
    features: int | None = None,
    weight: float | Array | Schedule = 1.0,
    hold: bool = False,
) -> Objective:
    """Peers that learn from targets of their own, and a leader that learns from all peers.

    ``Σ_i own(i) + w T² (Σ_a KL(t_a ‖ q_a) + KL(t ‖ q_leader))``, where ``q = softmax(z / T)``, ``t_a = Σ_b α_ab q_b``
    with ``α_ab = softmax_b(⟨L h_a, E h_b⟩)`` over the peers b, a itself among them, and t is their mean. L and E are
    linear maps without a bias, the same for all peers. Chen et al., "Online Knowledge Distillation with Diverse Peers",
    AAAI 2020 (OKDDip), section 3.

    As in the authors' code, the loss is differentiated as a whole: L and E, the features that they compare, and also
    the predictions that are targets, which move towards those whom they teach. The code differs from the paper in what
    is averaged, which there are the logits, and adds 1e-7 to the targets' probabilities.

    Args:
      peers: whose outputs the auxiliary peers' are, such as ``["peers/0", "peers/1"]``.
      leader: whose outputs the leader's are.
      feature: the name of the feature h of each peer ``[batch, ..., features]``, averaged over its positions; the same
        number of features for all.
      own: what every peer and the leader minimise by themselves, on ``student/logits``, usually the cross-entropy.
      temperature: T.
      features: of the projections; an eighth of h's by default, as in the authors' code.
      weight: of what is taught, a number or a schedule of the step; published with `jaxkd.schemes.ramp_up`.
      hold: keeps the gradient of what is taught from the targets' predictions and features: peers then are targets
        alone, the leader cannot move them, and only L and E learn from how they are weighed.

    Returns:
      An `Objective` that owns ``parts``, the ``query`` L and the ``key`` E, and what ``own`` owns, for each peer anew.
      Its metrics are those of the terms under ``own/NAME`` and ``taught/NAME``.

    Raises:
      ValueError: there are no peers, a name is there twice, or a number is not positive; and when it is initialised:
        an output does not exist, or shapes differ.

    >>> from jaxkd.objectives.compose import term
    >>> own = term(losses.cross_entropy, "student/logits", "batch/label")
    >>> objective = attentive(["a", "b"], "c", "f", own=own, features=2)
    >>> outputs = {f"{name}/logits": jnp.ones((2, 3)) for name in "abc"}
    >>> outputs |= {f"{name}/f": jnp.ones((2, 4)) for name in "ab"}
    >>> made = objective.init(jax.random.key(0), Context(outputs, {}, {"label": jnp.array([0, 1])}, 0))
    >>> jax.tree.map(jnp.shape, made.params["parts"])
    {'key': {'kernel': (4, 2)}, 'query': {'kernel': (4, 2)}}
    """
    if not peers or len({*peers, leader}) != len(peers) + 1:
        got = f"{[*peers, leader]}" if peers else "none"
        raise ValueError(f"attentive: expected at least one peer, and each name once, got {got}.")
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:  # NaN is not
        raise ValueError(f"attentive, temperature: expected a positive number, got {temperature}.")
    if features is not None and features < 1:
        raise ValueError(f"attentive, features: expected a positive number, or None, got {features}.")
    logits_paths = [f"student/{peer}/logits" for peer in peers]
    paths = [f"student/{peer}/{feature}" for peer in peers]
    held = jax.lax.stop_gradient if hold else lambda x: x

    def init(key: Array, context: Context) -> LossVars:
        same_shape("attentive", context, [*logits_paths, f"student/{leader}/logits"])
        found = {path: lookup(context, path) for path in paths}
        sizes = {x.shape[-1] for x in found.values() if len(x.shape) > 1 and jnp.issubdtype(x.dtype, jnp.floating)}
        if len(sizes) != 1 or any(len(x.shape) < 2 for x in found.values()):
            raise ValueError(
                f"attentive, {feature!r}: expected floating-point features [batch, ..., features] of one size for all "
                f"peers, got {checks.describe(found)}."
            )
        size = sizes.pop()
        outputs = max(size // 8, 1) if features is None else features
        first, second = jax.random.split(key)
        maps = {"query": first, "key": second}
        return LossVars({name: dense_init(k, size, outputs, bias=False) for name, k in maps.items()})

    def make(params: Any, state: Any, context: Context, key: Array | None) -> tuple[dict[str, Array], Any]:
        del key
        h = jnp.stack([_pooled(context, path) for path in paths], axis=1)  # [batch, peers, features]
        query, known = (dense(params[name], held(h)) for name in ("query", "key"))
        log_alpha = jax.nn.log_softmax(query @ jnp.swapaxes(known, 1, 2), axis=-1)
        logits = jnp.stack([counted(context, lookup(context, path)) for path in logits_paths], axis=1)
        logits = held(logits.astype(jnp.result_type(jnp.float32, logits)))
        log_q = jax.nn.log_softmax(logits / temperature, axis=-1)
        targets = {
            f"{_TARGET}/{peer}/logits": temperature * _log_mixture(log_alpha[:, i], log_q)
            for i, peer in enumerate(peers)
        }
        equal = jnp.full(log_alpha.shape[::2], -math.log(len(peers)), log_alpha.dtype)
        return {**targets, f"{_TARGET}/{leader}/logits": temperature * _log_mixture(equal, log_q)}, state

    def kl(name: str) -> Objective:
        # Both are parts of the student, so that the gradient goes through either; `between` would stop it.
        return term(
            losses.soft_target_kl,
            f"student/{name}/logits",
            f"student/{_TARGET}/{name}/logits",
            weight=weight,
            temperature=temperature,
        )

    everyone = [*peers, leader]
    terms = combine(
        own=combine(**{name: between(own, student=name) for name in everyone}),
        taught=combine(**{name: kl(name) for name in everyone}),
    )
    return with_parts(init, make, terms)


def _pooled(context: Context, path: str) -> Array:
    x = counted(context, lookup(context, path))
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1]).mean(axis=1)


def _log_mixture(log_weights: Array, log_q: Array) -> Array:
    """``log Σ_b w_b q_b`` of weights ``[batch, peers]`` and log-probabilities ``[batch, peers, ..., classes]``."""
    log_weights = jnp.expand_dims(log_weights, tuple(range(2, log_q.ndim)))
    excluded = jnp.all(log_q == -jnp.inf, axis=1, keepdims=True)
    mixed = jax.nn.logsumexp(log_weights + jnp.where(excluded, 0, log_q), axis=1)
    return jnp.where(excluded[:, 0], -jnp.inf, mixed)
