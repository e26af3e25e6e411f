"""Chains of networks between a large teacher and a small student."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import optax

from jaxkd import metrics as metrics_lib
from jaxkd import teachers
from jaxkd.distillers import distill
from jaxkd.schemes.phases._sequential import Phase, inherit, sequential
from jaxkd.types import Context, Distiller, Metrics, Model, Objective, Teacher

_STUDENT = "student"


def assistants(
    student: Model,
    teacher: Teacher,
    objective: Objective | Callable[[str], Objective],
    *,
    assistants: Mapping[str, Model],
    steps: int | Mapping[str, int],
    optimizer: optax.GradientTransformation | Callable[[str], optax.GradientTransformation],
    objective_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """Distillation along a chain: teacher → assistant → ... → student.

    Also known as: TAKD (teacher assistant knowledge distillation).

    Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020, sections 3 and 4. Networks of
    intermediate sizes are distilled first, each from the one before it.

    Args:
      student: model of the student, the last link of the chain.
      teacher: trained teacher of the first link, from `jaxkd.teachers`.
      objective: objective of every link, whose teacher is the network before; or a function from the name of the link's
        student (the last is ``"student"``) to its objective.
      assistants: models of the assistants by name, from the teacher's side to the student's; may be empty.
      steps: number of steps of each assistant: one number, or one by name. The student trains until training ends.
      optimizer: any optax transformation, for every link; its schedule begins with the link. Or a function from the
        name of the link's student to its optimizer.
      objective_optimizer: optax transformation of the objectives' parameters; the same by default.
      metrics: function of a `Context`, or several, reported by ``evaluate`` beside the terms of the current link.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms.

    Returns:
      A `Distiller`. ``wrappers.get_member(state.student, NAME)`` are the variables of ``"student"`` or an assistant.

    Raises:
      ValueError: an assistant is named ``"student"``, or a number of steps is missing, superfluous or not positive.

    >>> import jax, jax.numpy as jnp, jaxkd
    >>> from jaxkd import losses
    >>> def linear(width):
    ...     init = lambda key, x: (jnp.ones((2, width)), jnp.zeros((width, 3)))
    ...     return jaxkd.adapters.plain(init, lambda w, x: x @ w[0] @ w[1], inputs="x")
    >>> teacher = jaxkd.teachers.frozen(linear(8), jaxkd.Variables((jnp.ones((2, 8)), jnp.ones((8, 3)))))
    >>> kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits")
    >>> kd = assistants(linear(2), teacher, kl, assistants={"medium": linear(4)}, steps=10, optimizer=optax.sgd(0.1))
    >>> state = kd.init(jax.random.key(0), {"x": jnp.ones((4, 2))})
    >>> jaxkd.wrappers.get_member(state.student, "student").params[1].shape
    (2, 3)
    """
    if _STUDENT in assistants:
        raise ValueError(f"assistants: the name {_STUDENT!r} is reserved for the student, rename this assistant.")
    models = {**assistants, _STUDENT: student}
    names = list(models)
    lengths = dict.fromkeys(assistants, steps) if isinstance(steps, int) else dict(steps)
    if missing := [name for name in assistants if name not in lengths]:
        raise ValueError(f"assistants, steps: expected a number for each assistant, got none for {missing}.")
    if unknown := [name for name in lengths if name not in assistants]:
        raise ValueError(f"assistants, steps: expected numbers for {list(assistants)} only, got one for {unknown}.")
    phases: dict[str, Phase] = {}
    for i, name in enumerate(names):
        kd = distill(
            models[name],
            teachers.placeholder(models[names[i - 1]]) if i else teacher,
            objective if isinstance(objective, Objective) else objective(name),
            optimizer=optimizer if isinstance(optimizer, optax.GradientTransformation) else optimizer(name),
            objective_optimizer=objective_optimizer,
            metrics=metrics,
            train_metrics=train_metrics,
        )
        phases[name] = Phase(kd, lengths.get(name), inherit(teacher=names[i - 1]) if i else None)
    return sequential(**phases)


def chains(candidates: Sequence[str], student: str) -> Iterator[tuple[str, ...]]:
    """Yields all chains to a student through any of the assistants, in order.

    Args:
      candidates: names of the possible assistants, from the teacher's side to the student's.
      student: name of the last link of each chain.

    Yields:
      Chains, without the teacher; the first one is the student alone, which is offline distillation.

    >>> list(chains(["large", "small"], "student"))
    [('student',), ('large', 'student'), ('small', 'student'), ('large', 'small', 'student')]
    """
    for count in range(len(candidates) + 1):
        for chosen in itertools.combinations(candidates, count):
            yield (*chosen, student)


def best_chain(
    model_names: Sequence[str], score: Callable[[str | None, str], float]
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Finds the best chain: each network is taught by its best possible teacher.

    There are 2ⁿ chains through n assistants, which Mirzadeh et al., AAAI 2020, compare. If of two assistants of one
    size the better one is the better teacher, then the best chain to a network extends the best chain to its teacher,
    and (n + 1) (n + 2) / 2 distillations find it.

    Args:
      model_names: names of the assistants, from the teacher's side, then the student's.
      score: ``score(before, model)`` distills a model from the best network named ``before``, or from the teacher if it
        is None, and returns the model's score (higher is better). It is called once for each pair, after all calls with
        ``before`` as the model.

    Returns:
      The chain, without the teacher, and the best score of every network.

    Raises:
      ValueError: there are no names, or two are the same.

    >>> gap = {None: 10, "large": 6, "small": 3, "student": 1}
    >>> best_chain(["large", "small", "student"], lambda before, model: -((gap[before] - gap[model]) ** 2))[0]
    ('large', 'small', 'student')
    """
    if not model_names or len(set(model_names)) < len(model_names):
        got = list(model_names)
        raise ValueError(f"best_chain, model_names: expected different names, the student's last, got {got}.")
    teacher_of: dict[str, str | None] = {}
    best: dict[str, float] = {}
    for i, model in enumerate(model_names):
        scores = {before: float(score(before, model)) for before in (None, *model_names[:i])}
        teacher_of[model] = max(scores, key=lambda before: scores[before])
        best[model] = scores[teacher_of[model]]
    chain: list[str] = []
    at: str | None = model_names[-1]
    while at is not None:
        chain.insert(0, at)
        at = teacher_of[at]
    return tuple(chain), best
