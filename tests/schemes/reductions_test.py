"""Schemes that reduce to another distiller, with equal losses and parameters."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
import pytest

import jaxkd
from jaxkd import adapters, combine, losses, objectives, schemes, teachers, term, wrappers
from tests import tiny
from tests.schemes import networks

KEY = jax.random.key(1)
SGD = optax.sgd(0.05, momentum=0.9)
CE = term(losses.cross_entropy, "student/logits", "batch/label")
KL = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=2.0)
PLAIN, BOTH = combine(ce=CE), combine(ce=CE, kd=KL)


class Pair(NamedTuple):
    """A scheme and the distiller to which it reduces.

    Attributes:
      scheme: the scheme.
      other: the simpler distiller.
      pick: function from the scheme's state to the variables that the other trains.
      batch: ``(size, seed) -> batch`` for the scheme.
      loss: the scheme's metric that equals the other's loss.
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
    return lambda state: wrappers.get_member(state.student, name)


def with_views(size, seed=0):
    batch = tiny.batch(size, seed)
    return {**batch, "pair": tiny.batch(size, seed + 9)["image"], "view": batch["image"]}


def mutual_with_zero_weight(name, student):
    students = {"a": tiny.student, "b": tiny.teacher_model}
    ignored = term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.0)
    kd = schemes.mutual(students, own=PLAIN, mutual=combine(kl=ignored), optimizer=SGD)
    return Pair(kd, alone(student), member(name), loss=f"own/{name}/ce")


def ema_of_decay_one():
    begun = tiny.student.init(jax.random.split(KEY, 4)[1], tiny.batch(1))
    frozen = teachers.frozen(tiny.student, begun)
    return Pair(distilled(BOTH, teachers.ema(tiny.student, decay=1.0)), distilled(BOTH, frozen))


def lwf_of_one_task():
    kd = schemes.learning_without_forgetting(tiny.student, tasks=[[0, 1, 2]], steps=[9], optimizer=SGD)
    return Pair(kd, alone())


def byot_with_zero_weight():
    head = adapters.plain(
        lambda key, f: jax.random.normal(key, (f.shape[-1], tiny.CLASSES)),
        lambda w, f: f.mean(axis=(1, 2)) @ w,
        inputs="feature",
    )
    exits = {"early": wrappers.Exit("map", head)}
    return Pair(schemes.byot(tiny.student, exits, optimizer=SGD, feature=None, weight=0.0), alone(), member("model"))


def images_of_the_batch():
    """Returns a synthesizer that makes nothing, for batches with images."""
    return schemes.synthesis.Synthesis(
        shapes=lambda batch: {},
        init=lambda key, batch, teacher: {},
        apply=lambda state, *_, key, step: ({}, state, {}),
    )


def flow_of_zero():
    module = networks.Convolutional()
    student = wrappers.with_flow(module, {"first": wrappers.FlowEdge("Conv_0", ["map"])}, lambda step: 0.0)
    kd = schemes.knowledge_flow(student, tiny.teacher(), BOTH, optimizer=SGD)
    other = distilled(BOTH, student=adapters.linen(module))
    return Pair(kd, other, lambda state: wrappers.extract_student(state.student))


PAIRS = {
    "ensemble of one teacher is that teacher": lambda: Pair(
        distilled(BOTH, teachers.ensemble({"a": tiny.teacher()})), offline()
    ),
    "learned ensemble of one teacher is soft targets": lambda: Pair(
        distilled(
            combine(ce=CE, kd=objectives.learned_ensemble(teachers=("teacher/logits",), temperature=2.0)),
        ),
        offline(),
    ),
    "EMA teacher of decay 1 is frozen": ema_of_decay_one,
    "mutual with weight 0 trains peer a alone": lambda: mutual_with_zero_weight("a", tiny.student),
    "mutual with weight 0 trains peer b alone": lambda: mutual_with_zero_weight("b", tiny.teacher_model),
    "mutual of one peer trains alone": lambda: Pair(
        schemes.mutual(tiny.student, peers=1, own=PLAIN, mutual=combine(kd=KL), optimizer=SGD), alone(), member("0")
    ),
    "teacher of online trains alone": lambda: Pair(
        schemes.online(tiny.student, tiny.teacher_model, BOTH, teacher_objective=PLAIN, optimizer=SGD),
        alone(tiny.teacher_model),
        member("teacher"),
        loss="teacher/ce",
    ),
    "chain without assistants is offline": lambda: Pair(
        schemes.assistants(tiny.student, tiny.teacher(), BOTH, assistants={}, steps=3, optimizer=SGD),
        offline(),
        member("student"),
    ),
    "generation 0 of born again trains alone": lambda: Pair(
        schemes.born_again(tiny.student, BOTH, first=PLAIN, generations=1, steps=9, optimizer=SGD), alone(), member("0")
    ),
    "staged with one stage is offline": lambda: Pair(
        schemes.staged(tiny.student, tiny.teacher(), schemes.phases.Stage(BOTH, SGD)), offline()
    ),
    "BYOT with weight 0 trains alone": byot_with_zero_weight,
    "CS-KD with weight 0 trains alone": lambda: Pair(
        schemes.class_wise(tiny.student, optimizer=SGD, weight=0.0), alone(), batch=with_views
    ),
    "past predictions with alpha 0 are labels": lambda: Pair(
        distilled(combine(ce=objectives.progressive_self_kd(tiny.DATA, alpha=0.0, steps=9)), teachers.none()), alone()
    ),
    "knowledge flow of 0 is offline": flow_of_zero,
    "data-free with real images is offline": lambda: Pair(
        schemes.data_free(distilled(BOTH), images_of_the_batch()), offline()
    ),
    "LwF of one task trains alone": lwf_of_one_task,
}


@pytest.mark.parametrize("name", PAIRS)
def test_scheme_reduces_to_the_simpler_distiller(name):
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
