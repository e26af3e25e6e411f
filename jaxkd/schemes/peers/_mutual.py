"""Deep mutual learning: peers that teach each other, without a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from jaxkd._core.train_state import optimizer_of_objective
from jaxkd.distillers import distill, per_model
from jaxkd.metrics import per_student
from jaxkd.objectives import combine, select
from jaxkd.teachers import none
from jaxkd.types import Array, Context, Distiller, Metrics, Model, Objective, ObjectiveOut, Teacher
from jaxkd.wrappers import joint, replicate


def mutual(
    students: Mapping[str, Model] | Model,
    *,
    own: Objective,
    mutual: Objective,
    optimizer: optax.GradientTransformation,
    peers: int | None = None,
    teacher: Teacher | None = None,
    objective_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = per_student,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """Mutual learning: peers learn from the data and from each other.

    Also known as: DML (deep mutual learning).

    Of K peers, peer i minimizes ``own(i) + 1/(K − 1) Σ_{j≠i} mutual(i ← j)``: Zhang et al., "Deep Mutual Learning",
    CVPR 2018, in its form for more than two peers. There, ``own`` is the cross-entropy and ``mutual`` is KL(p_j ‖ p_i),
    which is `losses.soft_target_kl` with ``temperature=1``. Any objective may take their place: relations, hints,
    contrastive ones. Parameters and state of ``own`` exist for each peer, those of ``mutual`` for each ordered pair.
    All peers take a step at once; in the paper's algorithm 1 they take turns, and each peer sees the updated others. No
    gradient of a peer's loss reaches another peer.

    Each peer has an optimizer state of its own, so that gradients are clipped for each peer.

    Args:
      students: models of the peers by name; or one model, which is replicated ``peers`` times
        (`jaxkd.wrappers.replicate`) under the names ``"0"``, ``"1"``, ...
      own: objective of a single peer, of ``student/...`` and ``batch/...``.
      mutual: objective between two peers, of which the other one is the teacher.
      optimizer: any optax transformation, for each peer.
      peers: number of replicas; None if the students have names.
      teacher: another teacher of all peers, from `jaxkd.teachers`, which ``own`` can read; none by default.
      objective_optimizer: optax transformation of the objectives' parameters, with a state for each; the same by
        default.
      metrics: function of a `Context`, or several, reported by ``evaluate``. The default is the accuracy of the peers'
        ensemble and of each peer, ``accuracy/NAME``.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms.

    Returns:
      A `Distiller`. ``wrappers.get_member(state.student, NAME)`` are the variables of one peer. The terms' metrics are
      ``own/NAME/...`` and ``mutual/NAME/OTHER/...``, for what NAME learns from OTHER. A single peer trains on ``own``.

    Raises:
      ValueError: there are no students, or ``peers`` does not fit them; from ``init``: an objective reads an entry that
        does not exist.

    >>> import jax, jax.numpy as jnp
    >>> import jaxkd
    >>> from jaxkd import losses
    >>> model = jaxkd.adapters.plain(lambda key, x: jax.random.normal(key, (2, 3)), lambda w, x: x @ w, inputs="x")
    >>> ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    >>> kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=1.0)
    >>> kd = mutual(model, peers=3, own=ce, mutual=kl, optimizer=optax.sgd(0.1))
    >>> batch = {"x": jnp.ones((4, 2)), "label": jnp.array([0, 0, 0, 1])}
    >>> state, metrics = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> [name for name in metrics if name.startswith("mutual/0") and not name.endswith("weight")]
    ['mutual/0/1', 'mutual/0/2']
    >>> [name for name in kd.evaluate(state, batch) if name.startswith("accuracy")]
    ['accuracy', 'accuracy/0', 'accuracy/1', 'accuracy/2']
    """
    model, names = students_of("mutual", students, peers)
    terms = {"own": combine(**{name: select(own, student=name) for name in names})}
    if len(names) > 1:
        terms["mutual"] = combine(**{name: _from_others(mutual, name, names) for name in names})
    alone = per_model(optimizer_of_objective(optimizer, objective_optimizer))
    return distill(
        model,
        teacher or none(),
        combine(**terms),
        optimizer=per_model(optimizer),
        objective_optimizer=per_model({"own": alone, "mutual": per_model(alone)}),
        metrics=metrics,
        train_metrics=train_metrics,
    )


def students_of(scheme: str, students: Mapping[str, Model] | Model, peers: int | None) -> tuple[Model, list[str]]:
    """Builds one model of all students, and returns it with their names.

    Raises:
      ValueError: there are no students, or not exactly one of names and a number of replicas is given.

    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: key, lambda w, x: x, inputs="x")
    >>> students_of("f", model, 2)[1], students_of("f", {"a": model}, None)[1]
    (['0', '1'], ['a'])
    """
    if isinstance(students, Mapping):
        if peers is not None:
            raise ValueError(f"{scheme}, peers: expected None, as the students have names, got {peers}.")
        return joint(students), list(students)
    if not hasattr(students, "apply"):
        raise ValueError(
            f"{scheme}, students: expected a mapping from names to models, or one model, got {type(students).__name__}."
        )
    if peers is None:
        raise ValueError(
            f"{scheme}, peers: expected the number of copies of the one model, got None. Give different models by name."
        )
    return replicate(students, peers), [str(i) for i in range(peers)]


def _from_others(mutual: Objective, name: str, names: list[str]) -> Objective:
    others = [other for other in names if other != name]
    pairs = {other: select(mutual, student=name, teacher=other) for other in others}
    return combine(**{other: _scaled(pair, 1 / len(others)) for other, pair in pairs.items()})


def _scaled(objective: Objective, scale: float) -> Objective:
    """Returns `scale` times the objective; metrics stay unweighted, as a term's are."""

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        out = objective.apply(params, state, context, key)
        terms = {name: scale * x for name, x in out.terms.items()}
        return out._replace(value=scale * out.value, terms=terms)

    return Objective(objective.init, apply)
