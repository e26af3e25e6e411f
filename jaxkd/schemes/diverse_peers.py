"""Diverse peers: each learns from targets of its own, and a leader learns from all (OKDDip)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import optax

from jaxkd.adapters.group import group
from jaxkd.objectives.attentive import attentive
from jaxkd.objectives.compose import Schedule
from jaxkd.schemes.mutual import students_of
from jaxkd.teachers.none import none
from jaxkd.training.distill import distill
from jaxkd.training.metrics import per_student
from jaxkd.training.per_member import per_member
from jaxkd.types import Array, Context, Distiller, Metrics, Model, Objective

__all__ = ["diverse_peers"]

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
    features: int | None = None,
    weight: float | Array | Schedule = 1.0,
    hold: bool = False,
    loss_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] = per_student,
    train_metrics: Callable[[Context], Metrics] | None = None,
) -> Distiller:
    """Two levels: auxiliary peers learn from weighted sums of their predictions, and a leader from their mean.

    ``Σ_i own(i) + w T² (Σ_a KL(Σ_b α_ab q_b ‖ q_a) + KL(mean_b q_b ‖ q_leader))`` with a learned attention α. Chen et
    al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020 (OKDDip), by `jaxkd.objectives.attentive`: there
    stands what α is, what gradients pass, and where the authors' code differs. The leader is what is used afterwards.
    Peers that share their lower layers, as in most of the paper's experiments, are `jaxkd.adapters.with_exits` and that
    objective.

    Args:
      auxiliaries: the auxiliary peers by name, of any architectures whose feature has one number of features; or one
        model, of which there are ``peers`` copies, run as one program.
      leader: the group's leader.
      feature: the tap that the attention compares, usually the last feature before the classifier.
      own: what every model minimises by itself, on ``student/...`` and ``batch/...``, usually the cross-entropy.
      optimizer: of every model, which has it to itself, as if it were trained alone.
      peers: how many copies; None where the auxiliaries have names.
      temperature: T.
      features: of the projections of the attention; an eighth of the feature's by default.
      weight: w, a number or a schedule of the step; published as ``ramp_up`` over 80 of 300 epochs.
      hold: keeps the gradient from what are targets, and trains only the projections by them.
      loss_optimizer: for the projections and what ``own`` learns; by default the optimizer.
      metrics: what ``evaluate`` reports: by default the accuracy of the leader, of each model, and of the peers' mean
        logits, ``accuracy/peers``.
      train_metrics: what ``step`` reports beside the terms.

    Returns:
      A `Distiller`. ``adapters.member(state.student, "leader")`` is the leader. The terms' metrics are ``own/leader``,
      ``own/peers/NAME``, ``taught/leader`` and ``taught/peers/NAME``.

    Raises:
      ValueError: there are no auxiliaries, or ``peers`` does not fit; and from ``init``: there is no such feature, or
        shapes differ.

    >>> import jax, jax.numpy as jnp
    >>> import jaxkd
    >>> from jaxkd import losses
    >>> apply = lambda w, x: {"logits": x @ w, "hidden": x}
    >>> model = jaxkd.adapters.plain(lambda key, x: jax.random.normal(key, (2, 3)), apply, inputs="x")
    >>> ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    >>> kd = diverse_peers(model, model, peers=2, feature="hidden", own=ce, optimizer=optax.sgd(0.1))
    >>> batch = {"x": jnp.ones((4, 2)), "label": jnp.array([0, 0, 0, 1])}
    >>> state, found = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> [name for name in found if name.startswith("taught") and not name.endswith("weight")]
    ['taught/leader', 'taught/peers/0', 'taught/peers/1']
    """
    others, names = students_of("diverse_peers", auxiliaries, peers)
    return distill(
        group({_PEERS: others, _LEADER: leader}, main=_LEADER),
        none(),
        attentive(
            [f"{_PEERS}/{name}" for name in names],
            _LEADER,
            feature,
            own=own,
            temperature=temperature,
            features=features,
            weight=weight,
            hold=hold,
        ),
        optimizer=per_member({_PEERS: per_member(optimizer), _LEADER: optimizer}),
        loss_optimizer=loss_optimizer or optimizer,
        metrics=metrics,
        train_metrics=train_metrics,
    )
