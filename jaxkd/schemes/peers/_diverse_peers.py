"""Peers taught by an attention over all peers, and a leader taught by their mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import optax

from jaxkd._core.train_state import optimizer_of_objective
from jaxkd.distillers import distill, per_model
from jaxkd.metrics import per_student
from jaxkd.objectives import peer_attention
from jaxkd.schemes.peers._mutual import students_of
from jaxkd.teachers import none
from jaxkd.types import Array, Context, Distiller, Metrics, Model, Objective, Schedule
from jaxkd.wrappers import joint

_PEERS, _LEADER = "peers", "leader"


def diverse_peers(
    auxiliaries: Mapping[str, Model] | Model,
    leader: Model,
    *,
    feature: str,
    own: Objective,
    optimizer: optax.GradientTransformation,
    peers: int | None = None,
    temperature: float | Array = 3.0,
    hidden_size: int | None = None,
    weight: float | Array | Schedule = 1.0,
    hold: bool = False,
    objective_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = per_student,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """Two-level distillation: peers learn from attention, a leader from their mean.

    Also known as: OKDDip (online knowledge distillation with diverse peers).

    ``Σ_i own(i) + w T² (Σ_a KL(Σ_b α_ab q_b ‖ q_a) + KL(mean_b q_b ‖ q_leader))`` with a learned attention α over the
    auxiliary peers. Chen et al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020.
    `jaxkd.objectives.peer_attention` defines α and its gradients and lists where the authors' code differs. The leader
    is the model to deploy. For peers that share their lower layers, as in most of the paper's experiments, use that
    objective with `jaxkd.wrappers.with_exits`.

    Args:
      auxiliaries: models of the auxiliary peers by name, with equal sizes of ``feature``; or one model, which is
        replicated ``peers`` times.
      leader: model of the leader.
      feature: name of the tap that the attention compares, usually the last feature before the classifier.
      own: objective of each model, of ``student/...`` and ``batch/...``, usually the cross-entropy.
      optimizer: any optax transformation; each model has a state of its own.
      peers: number of replicas; None if the auxiliaries have names.
      temperature: T.
      hidden_size: number of features of the attention's projections; by default an eighth of those of ``feature``.
      weight: w, a number or a schedule of the step; published as ``ramp_up`` over 80 of 300 epochs.
      hold: stops the gradient into the targets, which then train only the projections.
      objective_optimizer: optax transformation of the projections and of ``own``; the same by default.
      metrics: function of a `Context`, or several, reported by ``evaluate``. The default is the accuracy of the leader,
        of each model, and of the peers' mean logits, ``accuracy/peers``.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms.

    Returns:
      A `Distiller`. ``wrappers.get_member(state.student, "leader")`` are the variables of the leader. The terms'
      metrics are ``own/leader``, ``own/peers/NAME``, ``taught/leader`` and ``taught/peers/NAME``.

    Raises:
      ValueError: there are no auxiliaries, or ``peers`` does not fit them; from ``init``: the feature does not exist,
        or shapes differ.

    >>> import jax, jax.numpy as jnp
    >>> import jaxkd
    >>> from jaxkd import losses
    >>> apply = lambda w, x: {"logits": x @ w, "hidden": x}
    >>> model = jaxkd.adapters.plain(lambda key, x: jax.random.normal(key, (2, 3)), apply, inputs="x")
    >>> ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    >>> kd = diverse_peers(model, model, peers=2, feature="hidden", own=ce, optimizer=optax.sgd(0.1))
    >>> batch = {"x": jnp.ones((4, 2)), "label": jnp.array([0, 0, 0, 1])}
    >>> state, metrics = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> [name for name in metrics if name.startswith("taught") and not name.endswith("weight")]
    ['taught/leader', 'taught/peers/0', 'taught/peers/1']
    """
    others, names = students_of("diverse_peers", auxiliaries, peers)
    return distill(
        joint({_PEERS: others, _LEADER: leader}, main=_LEADER),
        none(),
        peer_attention(
            [f"{_PEERS}/{name}" for name in names],
            _LEADER,
            feature,
            own=own,
            temperature=temperature,
            hidden_size=hidden_size,
            weight=weight,
            hold=hold,
        ),
        optimizer=per_model({_PEERS: per_model(optimizer), _LEADER: optimizer}),
        objective_optimizer=optimizer_of_objective(optimizer, objective_optimizer),
        metrics=metrics,
        train_metrics=train_metrics,
    )
