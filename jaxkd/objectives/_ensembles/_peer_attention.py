"""Individual targets for each peer, by learned attention over all peers (OKDDip)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import checks
from jaxkd._core.batches import lookup
from jaxkd._core.checks import same_shape
from jaxkd.objectives._checks import positive, sizes
from jaxkd.objectives._compose import combine, term
from jaxkd.objectives._derived_outputs import with_derived_outputs
from jaxkd.objectives._select import select
from jaxkd.objectives._tokens import mask_feature
from jaxkd.objectives.layers import dense, dense_init, position_mean
from jaxkd.types import Array, Context, Objective, ObjectiveVars, Schedule

_TARGET = "target"


def peer_attention(
    peer_names: Sequence[str],
    leader_name: str,
    feature: str,
    *,
    own: Objective,
    temperature: float | Array = 3.0,
    hidden_size: int | None = None,
    weight: float | Array | Schedule = 1.0,
    hold: bool = False,
) -> Objective:
    """Distills attention-weighted ensembles into peers, and their mean into a leader.

    Also known as: OKDDip (online knowledge distillation with diverse peers).

    ``Σ_i own(i) + w T² (Σ_a KL(t_a ‖ q_a) + KL(t ‖ q_leader))``, where ``q = softmax(z / T)``, ``t_a = Σ_b α_ab q_b``
    with ``α_ab = softmax_b(⟨L h_a, E h_b⟩)`` over all peers b including a, and t is the mean of the q_b. L and E are
    linear maps without a bias, shared by all peers. Chen et al., "Online Knowledge Distillation with Diverse Peers",
    AAAI 2020, section 3.

    As in the authors' code, gradients also reach the features that L and E compare and the predictions in the targets,
    which move towards the peers they teach. Unlike the paper, that code averages logits, and it adds 1e-7 to the
    targets' probabilities.

    Args:
      peer_names: names of the auxiliary peers' outputs, such as ``["peers/0", "peers/1"]``.
      leader_name: name of the leader's outputs.
      feature: name of the feature h of each peer ``[batch, ..., features]``, averaged over its positions; all peers
        have the same number of features.
      own: objective that every peer and the leader minimize individually, on ``student/logits``, usually the
        cross-entropy.
      temperature: T > 0.
      hidden_size: size of the projections; an eighth of h's by default, as in the authors' code.
      weight: w, a number or an optax schedule of the step; published with `jaxkd.schemes.peers.ramp_up`.
      hold: stops the gradient of the distillation terms at the targets' predictions and features. The leader then does
        not influence the peers; L and E still learn from the attention weights.

    Returns:
      An `Objective` with the parameters ``parts``, the ``query`` L and the ``key`` E, and those of ``own``, separate
      for each peer. Its metrics are those of the terms under ``own/NAME`` and ``taught/NAME``.

    Raises:
      ValueError: there are no peers, a name is given twice, or a number is not positive; and from ``init``: an output
        does not exist, or shapes differ.

    >>> from jaxkd.objectives import term
    >>> own = term(losses.cross_entropy, "student/logits", "batch/label")
    >>> objective = peer_attention(["a", "b"], "c", "f", own=own, hidden_size=2)
    >>> outputs = {f"{name}/logits": jnp.ones((2, 3)) for name in "abc"}
    >>> outputs |= {f"{name}/f": jnp.ones((2, 4)) for name in "ab"}
    >>> variables = objective.init(jax.random.key(0), Context(outputs, {}, {"label": jnp.array([0, 1])}, 0))
    >>> jax.tree.map(jnp.shape, variables.params["parts"])
    {'key': {'kernel': (4, 2)}, 'query': {'kernel': (4, 2)}}
    """
    if not peer_names or len({*peer_names, leader_name}) != len(peer_names) + 1:
        got = f"{[*peer_names, leader_name]}" if peer_names else "none"
        raise ValueError(f"peer_attention: expected at least one peer, and each name once, got {got}.")
    positive("peer_attention", temperature=temperature)
    if hidden_size is not None:
        sizes("peer_attention", hidden_size=hidden_size)
    logits_paths = [f"student/{peer}/logits" for peer in peer_names]
    paths = [f"student/{peer}/{feature}" for peer in peer_names]
    held = jax.lax.stop_gradient if hold else lambda x: x

    def init(key: Array, context: Context) -> ObjectiveVars:
        same_shape("peer_attention", {p: lookup(context, p) for p in (*logits_paths, f"student/{leader_name}/logits")})
        given = {path: lookup(context, path) for path in paths}
        sizes = {x.shape[-1] for x in given.values() if len(x.shape) > 1 and jnp.issubdtype(x.dtype, jnp.floating)}
        if len(sizes) != 1 or any(len(x.shape) < 2 for x in given.values()):
            raise ValueError(
                f"peer_attention, {feature!r}: expected floating-point features [batch, ..., features] of one size for "
                f"all peers, got {checks.describe(given)}."
            )
        size = sizes.pop()
        outputs = max(size // 8, 1) if hidden_size is None else hidden_size
        maps = zip(("query", "key"), jax.random.split(key), strict=True)
        return ObjectiveVars({name: dense_init(k, size, outputs, bias=False) for name, k in maps})

    def make(params: Any, state: Any, context: Context, key: Array | None) -> tuple[dict[str, Array], Any]:
        del key
        h = jnp.stack([position_mean(context, lookup(context, path)) for path in paths], axis=1)
        queries, keys = (dense(params[name], held(h)) for name in ("query", "key"))  # [batch, peers, features]
        log_alpha = jax.nn.log_softmax(queries @ jnp.swapaxes(keys, 1, 2), axis=-1)
        logits = jnp.stack([mask_feature(context, lookup(context, path)) for path in logits_paths], axis=1)
        logits = held(logits.astype(jnp.result_type(jnp.float32, logits)))
        log_q = jax.nn.log_softmax(logits / temperature, axis=-1)
        uniform = jnp.full(log_alpha.shape[::2], -math.log(len(peer_names)), log_alpha.dtype)
        weights = {**{peer: log_alpha[:, i] for i, peer in enumerate(peer_names)}, leader_name: uniform}
        return {f"{_TARGET}/{name}/logits": temperature * _log_mixture(w, log_q) for name, w in weights.items()}, state

    def kl(name: str) -> Objective:
        # Gradients flow through prediction and target, both student outputs; `select` would stop those of the target.
        pair = f"student/{name}/logits", f"student/{_TARGET}/{name}/logits"
        return term(losses.soft_target_kl, *pair, weight=weight, temperature=temperature)

    members = [*peer_names, leader_name]
    terms = combine(
        own=combine(**{name: select(own, student=name) for name in members}),
        taught=combine(**{name: kl(name) for name in members}),
    )
    return with_derived_outputs(init, make, terms)


def _log_mixture(log_weights: Array, log_q: Array) -> Array:
    """Log of the mixture ``Σ_b w_b q_b``, -inf for a class that all peers exclude.

    ``log_weights`` is ``[batch, peers]``, ``log_q`` is ``[batch, peers, ..., classes]``.
    """
    log_weights = jnp.expand_dims(log_weights, tuple(range(2, log_q.ndim)))
    # logsumexp of only -inf has a NaN gradient, so excluded classes get a finite stand-in.
    excluded = jnp.all(log_q == -jnp.inf, axis=1, keepdims=True)
    mixed = jax.nn.logsumexp(log_weights + jnp.where(excluded, 0, log_q), axis=1)
    return jnp.where(excluded[:, 0], -jnp.inf, mixed)
