"""Where a scheme is another one, or plain training: the same losses and the same parameters, number for number."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
import pytest

import jaxkd
from jaxkd import adapters, combine, losses, objectives, schemes, teachers, term
from tests import tiny
from tests.schemes import networks

KEY = jax.random.key(1)
SGD = optax.sgd(0.05, momentum=0.9)
CE = term(losses.cross_entropy, "student/logits", "batch/label")
KL = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=2.0)
PLAIN, BOTH = combine(ce=CE), combine(ce=CE, kd=KL)


class Pair(NamedTuple):
    """Two distillers that are to be one.

    Attributes:
      scheme: the scheme.
      other: what it is to be.
      pick: the scheme's variables of what the other trains.
      batch: for the scheme, of a number.
      loss: what of the scheme is the other's loss; a scheme that trains more has a larger one.
    """

    scheme: jaxkd.Distiller
    other: jaxkd.Distiller
    pick: Callable[[Any], jaxkd.Variables] = lambda state: state.student
    batch: Callable[[int, int], dict] = tiny.batch
    loss: str = "loss"


def distilled(objective, teacher=None, student=tiny.student):
    return jaxkd.distill(student, teacher or tiny.teacher(), objective, optimizer=SGD)


@functools.cache
def offline():
    return distilled(BOTH)


@functools.cache
def alone(student=tiny.student):
    return distilled(PLAIN, teachers.none(), student)


def member(name):
    return lambda state: adapters.member(state.student, name)


def with_views(size, seed=0):
    batch = tiny.batch(size, seed)
    return {**batch, "pair": tiny.batch(size, seed + 9)["image"], "view": batch["image"]}


def mutual_of_no_weight(name, student):
    students = {"a": tiny.student, "b": tiny.teacher_model}
    unheard = term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.0)
    kd = schemes.mutual(students, own=PLAIN, mutual=combine(kl=unheard), optimizer=SGD)
    return Pair(kd, alone(student), member(name), loss=f"own/{name}/ce")


def mean_teacher_that_stays():
    begun = tiny.student.init(jax.random.split(KEY, 4)[1], tiny.batch(1))
    frozen = teachers.frozen(tiny.student, begun)
    return Pair(distilled(BOTH, teachers.ema(tiny.student, decay=1.0)), distilled(BOTH, frozen))


def learning_without_an_old_task():
    kd = schemes.learning_without_forgetting(tiny.student, tasks=[[0, 1, 2]], steps=[9], optimizer=SGD)
    return Pair(kd, alone())


def depths_of_no_weight():
    head = adapters.plain(
        lambda key, f: jax.random.normal(key, (f.shape[-1], tiny.CLASSES)),
        lambda w, f: f.mean(axis=(1, 2)) @ w,
        inputs="feature",
    )
    exits = {"early": adapters.Exit("map", head)}
    return Pair(schemes.byot(tiny.student, exits, optimizer=SGD, feature=None, weight=0.0), alone(), member("model"))


def flow_of_nothing():
    module = networks.Convolutional()
    student = adapters.flow(module, {"first": adapters.Mix("Conv_0", ["map"])}, lambda step: 0.0)
    kd = schemes.knowledge_flow(student, tiny.teacher(), BOTH, optimizer=SGD)
    other = distilled(BOTH, student=adapters.linen(module))
    return Pair(kd, other, lambda state: adapters.student_alone(state.student))


PAIRS = {
    "an ensemble of one is its member": lambda: Pair(
        distilled(BOTH, teachers.ensemble({"a": tiny.teacher()})), offline()
    ),
    "learned weights of one teacher are soft targets": lambda: Pair(
        distilled(
            combine(ce=CE, kd=objectives.learned_ensemble(teachers=("teacher/logits",), temperature=2.0)),
        ),
        offline(),
    ),
    "a mean teacher of decay 1 is frozen": mean_teacher_that_stays,
    "peers that do not listen train alone, a": lambda: mutual_of_no_weight("a", tiny.student),
    "peers that do not listen train alone, b": lambda: mutual_of_no_weight("b", tiny.teacher_model),
    "one peer trains alone": lambda: Pair(
        schemes.mutual(tiny.student, peers=1, own=PLAIN, mutual=combine(kd=KL), optimizer=SGD), alone(), member("0")
    ),
    "a teacher beside its student trains alone": lambda: Pair(
        schemes.online(tiny.teacher_model, tiny.student, BOTH, teacher_objective=PLAIN, optimizer=SGD),
        alone(tiny.teacher_model),
        member("teacher"),
        loss="teacher/ce",
    ),
    "a chain without assistants is offline": lambda: Pair(
        schemes.assistants(tiny.teacher(), {"student": tiny.student}, BOTH, steps=3, optimizer=SGD),
        offline(),
        member("student"),
    ),
    "generation 0 trains alone": lambda: Pair(
        schemes.born_again(tiny.student, BOTH, first=PLAIN, generations=1, steps=9, optimizer=SGD), alone(), member("0")
    ),
    "one stage is distillation": lambda: Pair(
        schemes.staged(tiny.student, tiny.teacher(), schemes.Stage(BOTH, SGD)), offline()
    ),
    "exits of no weight are not there": depths_of_no_weight,
    "a partner of no weight is not there": lambda: Pair(
        schemes.class_wise(tiny.student, optimizer=SGD, weight=0.0), alone(), batch=with_views
    ),
    "a past of no weight is the label": lambda: Pair(
        distilled(combine(ce=objectives.past_predictions(tiny.DATA, alpha=0.0, steps=9)), teachers.none()), alone()
    ),
    "a flow of nothing is offline": flow_of_nothing,
    "images that are given are the real ones": lambda: Pair(
        schemes.data_free(distilled(BOTH), schemes.given()), offline()
    ),
    "no old task is plain training": learning_without_an_old_task,
}


@pytest.mark.parametrize("name", PAIRS)
def test_it_is_the_other(name):
    pair = PAIRS[name]()
    state, other = pair.scheme.init(KEY, pair.batch(8, 0)), pair.other.init(KEY, tiny.batch(8))
    begun = pair.pick(state)
    other = other._replace(student=begun)
    step, plain = jax.jit(pair.scheme.step), jax.jit(pair.other.step)
    for i in range(3):
        state, found = step(state, pair.batch(8, i))
        other, expected = plain(other, tiny.batch(8, i))
        assert tiny.numbers(found)[pair.loss] == pytest.approx(tiny.numbers(expected)["loss"], rel=1e-5)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), begun.params, other.student.params)
    assert all(jax.tree.leaves(moved))
    tiny.assert_close(pair.pick(state), other.student, rtol=1e-5, atol=1e-6)
