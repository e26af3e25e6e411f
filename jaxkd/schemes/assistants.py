"""Teacher assistants: a chain of networks between a large teacher and a small student, each taught by the last."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import optax

from jaxkd import teachers
from jaxkd.schemes.relay import Leg, handed, relay
from jaxkd.training import metrics as metrics_lib
from jaxkd.training.distill import distill
from jaxkd.types import Context, Distiller, Metrics, Model, Objective, Teacher

__all__ = ["assistants", "best_chain", "chains"]


def assistants(
    teacher: Teacher,
    models: Mapping[str, Model],
    objective: Objective | Callable[[str], Objective],
    *,
    steps: int | Mapping[str, int],
    optimizer: optax.GradientTransformation | Callable[[str], optax.GradientTransformation],
    loss_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | None = None,
) -> Distiller:
    """Distillation along a chain, as one distiller: teacher → assistant → ... → student.

    Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020, sections 3 and 4: where the gap
    between teacher and student is large, networks of sizes between them are distilled first, each from the one before.

    Args:
      teacher: that of the first model, a trained one.
      models: the assistants and, last, the student, by name, in the order of the chain.
      objective: of every link, whose teacher is the network before; or a function of the link's student's name.
      steps: of each link but the last, which lasts until training ends: one number, or one by name.
      optimizer: of every link; its schedule begins with it. Or a function of the name.
      loss_optimizer: for what the objectives learn; the same by default.
      metrics: what ``evaluate`` reports beside the objective's terms, for the link at hand.
      train_metrics: what ``step`` reports beside them.

    Returns:
      A `Distiller`. ``adapters.member(state.student, NAME)`` are the variables of one network. With one model it is
      offline distillation.

    Raises:
      ValueError: there are no models, or a number of steps is missing or not positive.

    >>> import jax, jax.numpy as jnp, jaxkd
    >>> from jaxkd import losses
    >>> def linear(width):
    ...     init = lambda key, x: (jnp.ones((2, width)), jnp.zeros((width, 3)))
    ...     return jaxkd.adapters.plain(init, lambda w, x: x @ w[0] @ w[1], inputs="x")
    >>> teacher = jaxkd.teachers.frozen(linear(8), jaxkd.Variables((jnp.ones((2, 8)), jnp.ones((8, 3)))))
    >>> kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits")
    >>> chain = {"assistant": linear(4), "student": linear(2)}
    >>> kd = assistants(teacher, chain, kl, steps=10, optimizer=optax.sgd(0.1))
    >>> state = kd.init(jax.random.key(0), {"x": jnp.ones((4, 2))})
    >>> jaxkd.adapters.member(state.student, "student").params[1].shape
    (2, 3)
    """
    names = list(models)
    if not names:
        raise ValueError("assistants, models: expected at least the student, got none.")
    lengths = {name: steps for name in names} if isinstance(steps, int) else dict(steps)
    if missing := [name for name in names[:-1] if name not in lengths]:
        raise ValueError(f"assistants, steps: expected a number for each link but the last, got none for {missing}.")
    if unknown := [name for name in lengths if name not in names]:
        raise ValueError(f"assistants, steps: expected numbers for links of {names}, got some for {unknown} too.")
    legs: dict[str, Leg] = {}
    for i, name in enumerate(names):
        kd = distill(
            models[name],
            teachers.awaited(models[names[i - 1]]) if i else teacher,
            objective if isinstance(objective, Objective) else objective(name),
            optimizer=optimizer if isinstance(optimizer, optax.GradientTransformation) else optimizer(name),
            loss_optimizer=loss_optimizer,
            metrics=metrics,
            train_metrics=train_metrics,
        )
        begin = handed(teacher=names[i - 1]) if i else None
        legs[name] = Leg(kd, lengths[name] if i < len(names) - 1 else None, begin)
    return relay(**legs)


def chains(between: Sequence[str], student: str) -> Iterator[tuple[str, ...]]:
    """All chains that lead to a student: any of the assistants, in their order.

    Args:
      between: the possible assistants, from the teacher's side to the student's.
      student: the last of each chain.

    Returns:
      Chains, without the teacher; the first is the student alone, which is offline distillation.

    >>> list(chains(["large", "small"], "student"))
    [('student',), ('large', 'student'), ('small', 'student'), ('large', 'small', 'student')]
    """
    for count in range(len(between) + 1):
        for chosen in itertools.combinations(between, count):
            yield (*chosen, student)


def best_chain(
    models: Sequence[str], score: Callable[[str | None, str], float]
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Finds a chain: every network is taught by whichever one before it makes it best.

    There are 2ⁿ chains through n assistants, which Mirzadeh et al., AAAI 2020, compare. If of two assistants of one
    size the better one is the better teacher, the best chain to a network extends the best chain to its teacher, and
    (n + 1) (n + 2) / 2 distillations find it.

    Args:
      models: the assistants, from the teacher's side, and the student last.
      score: ``score(before, model)`` distils a model from an earlier one, as it was found best, or from the teacher,
        where ``before`` is None, and says how good it has become. It is called once for each pair, in an order in which
        ``before`` has been decided.

    Returns:
      The chain, without the teacher, and the best score of every network.

    Raises:
      ValueError: there are no models, or two have the same name.

    >>> gap = {None: 10, "large": 6, "small": 3, "student": 1}
    >>> best_chain(["large", "small", "student"], lambda before, model: -((gap[before] - gap[model]) ** 2))[0]
    ('large', 'small', 'student')
    """
    if not models or len(set(models)) < len(models):
        raise ValueError(f"best_chain, models: expected different names, the student's last, got {list(models)}.")
    teacher_of: dict[str, str | None] = {}
    best: dict[str, float] = {}
    for i, model in enumerate(models):
        scores = {before: float(score(before, model)) for before in (None, *models[:i])}
        teacher_of[model] = max(scores, key=lambda before: scores[before])
        best[model] = scores[teacher_of[model]]
    chain: list[str] = []
    at: str | None = models[-1]
    while at is not None:
        chain.insert(0, at)
        at = teacher_of[at]
    return tuple(chain), best
