"""Deep mutual learning: peers that teach each other, without a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optax

from jaxkd.adapters.group import copies, group
from jaxkd.objectives.between import between
from jaxkd.objectives.compose import combine
from jaxkd.teachers.none import none
from jaxkd.training.distill import distill
from jaxkd.training.metrics import per_student
from jaxkd.training.per_member import per_member
from jaxkd.types import Array, Context, Distiller, LossOut, Metrics, Model, Objective, Teacher

__all__ = ["mutual"]


def mutual(
    students: Mapping[str, Model] | Model,
    *,
    own: Objective,
    mutual: Objective,
    optimizer: optax.GradientTransformation,
    peers: int | None = None,
    teacher: Teacher | None = None,
    loss_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] = per_student,
    train_metrics: Callable[[Context], Metrics] | None = None,
) -> Distiller:
    """Peers that learn from the data and from each other, all at once.

    Of K peers, i minimises ``own(i) + 1/(K − 1) Σ_{j≠i} mutual(i ← j)``: Zhang et al., "Deep Mutual Learning", CVPR
    2018, its form for more than two peers, with ``own`` the cross-entropy and ``mutual`` the KL(p_j ‖ p_i), for which
    `losses.soft_target_kl` has ``temperature=1``. Any objectives do: relations, hints, contrastive ones. What they
    learn and remember is another for each peer, and for each ordered pair of peers. All peers take a step at once, by
    what all said before it; in the paper's algorithm 1 they take turns, and each sees what the others have become. No
    gradient of a peer's loss reaches another peer.

    Every peer has the optimizer to itself, as if it were trained alone: gradients are clipped for each.

    Args:
      students: the peers by name, of any architectures; or one model, of which there are ``peers`` copies, run as one
        program (`jaxkd.adapters.copies`) with names ``"0"``, ``"1"``, ...
      own: what every peer minimises by itself, on ``student/...`` and ``batch/...``.
      mutual: what a peer minimises by another, which has the teacher's place.
      optimizer: of every peer.
      peers: how many copies; None where the students have names.
      teacher: a further teacher for all, from `jaxkd.teachers`, which ``own`` can read; none by default.
      loss_optimizer: for what the objectives learn, for each of them by itself; by default the optimizer.
      metrics: what ``evaluate`` reports: by default the accuracy of the peers' ensemble and that of each,
        ``accuracy/NAME``.
      train_metrics: what ``step`` reports beside the terms.

    Returns:
      A `Distiller`. ``adapters.member(state.student, NAME)`` is a peer by itself. The terms' metrics are
      ``own/NAME/...`` and ``mutual/NAME/OTHER/...``, what NAME learns from OTHER. One peer alone is plain training.

    Raises:
      ValueError: there are no students, or ``peers`` does not fit; and from ``init``: an objective asks for something
        that there is not.

    >>> import jax, jax.numpy as jnp
    >>> import jaxkd
    >>> from jaxkd import losses
    >>> model = jaxkd.adapters.plain(lambda key, x: jax.random.normal(key, (2, 3)), lambda w, x: x @ w, inputs="x")
    >>> ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    >>> kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=1.0)
    >>> kd = mutual(model, peers=3, own=ce, mutual=kl, optimizer=optax.sgd(0.1))
    >>> batch = {"x": jnp.ones((4, 2)), "label": jnp.array([0, 0, 0, 1])}
    >>> state, found = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> [name for name in found if name.startswith("mutual/0") and not name.endswith("weight")]
    ['mutual/0/1', 'mutual/0/2']
    >>> [name for name in kd.evaluate(state, batch) if name.startswith("accuracy")]
    ['accuracy', 'accuracy/0', 'accuracy/1', 'accuracy/2']
    """
    model, names = students_of("mutual", students, peers)
    terms = {"own": combine(**{name: between(own, student=name) for name in names})}
    if len(names) > 1:
        terms["mutual"] = combine(**{name: _from_others(mutual, name, names) for name in names})
    alone = per_member(loss_optimizer or optimizer)
    return distill(
        model,
        teacher or none(),
        combine(**terms),
        optimizer=per_member(optimizer),
        loss_optimizer=per_member({"own": alone, "mutual": per_member(alone)}),
        metrics=metrics,
        train_metrics=train_metrics,
    )


def students_of(scheme: str, students: Mapping[str, Model] | Model, peers: int | None) -> tuple[Model, list[str]]:
    """The group of some students, and their names: models by name, or one model and how many copies of it.

    Args:
      scheme: whose they are, as the first word of messages.
      students: models by name, or one.
      peers: how many copies of the one.

    Raises:
      ValueError: there are none, they have no names, or both or neither of names and a number are given.

    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: key, lambda w, x: x, inputs="x")
    >>> students_of("f", model, 2)[1], students_of("f", {"a": model}, None)[1]
    (['0', '1'], ['a'])
    """
    if isinstance(students, Mapping):
        if peers is not None:
            raise ValueError(f"{scheme}, peers: expected None for students that have names, got {peers}.")
        return group(students), list(students)
    if not hasattr(students, "apply"):
        raise ValueError(f"{scheme}, students: expected models by name, or one model, got {type(students).__name__}.")
    if peers is None:
        raise ValueError(f"{scheme}, peers: expected how many copies of the model there are, or students by name.")
    return copies(students, peers), [str(i) for i in range(peers)]


def _from_others(mutual: Objective, name: str, names: list[str]) -> Objective:
    others = [other for other in names if other != name]
    pairs = {other: between(mutual, student=name, teacher=other) for other in others}
    return combine(**{other: _scaled(pair, 1 / len(others)) for other, pair in pairs.items()})


def _scaled(objective: Objective, scale: float) -> Objective:
    """An objective that weighs less; its metrics are reported unweighted, as those of every term."""

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        out = objective.apply(params, state, context, key)
        terms = {name: scale * x for name, x in out.terms.items()}
        return out._replace(value=scale * out.value, terms=terms)

    return Objective(objective.init, apply)
