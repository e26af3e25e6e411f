"""`schemes.online`: the teacher trains as it would alone, and teaches the student."""

import functools

import jax
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, losses, objectives, term
from jaxkd.schemes import online
from jaxkd.wrappers import get_member
from tests import tiny
from tests.schemes.peers_toy import CE, CLIPPED, KL, SGD, normed, run

BOTH = combine(ce=CE, kd=KL, hint=objectives.hint("student/logits", "teacher/vector", weight=0.5))
OTHER = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(3e-2))


@functools.cache
def distiller(teacher=normed, objective=BOTH, **options):
    return online(tiny.student, teacher, objective, teacher_objective=CE, optimizer=CLIPPED, **options)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [None, OTHER])
def test_teacher_trains_as_it_would_alone(optimizer):
    kd = distiller(teacher_optimizer=optimizer)
    start = kd.init(jax.random.key(1), tiny.batch(8))
    state, found = run(kd, 4, state=start)
    alone = jaxkd.distill(normed, jaxkd.teachers.none(), CE, optimizer=optimizer or CLIPPED)
    begin = alone.init(jax.random.key(1), tiny.batch(8))._replace(student=get_member(start.student, "teacher"))
    expected, values = run(alone, 4, state=begin)
    tiny.assert_close(get_member(state.student, "teacher"), expected.student, rtol=1e-5, atol=1e-6)
    assert [one["teacher"] for one in found] == pytest.approx([one["loss"] for one in values], rel=1e-5)


def test_student_is_taught_by_the_current_teacher():
    """A step equals offline distillation from the teacher before it, in training mode."""
    kd = distiller()
    start = kd.init(jax.random.key(1), tiny.batch(8))
    before, _ = run(kd, 1, state=start)
    after, _ = run(kd, 1, state=before)
    teacher = jaxkd.teachers.frozen(normed, get_member(before.student, "teacher"), train=True)
    offline = jaxkd.distill(tiny.student, teacher, BOTH, optimizer=CLIPPED)
    begin = offline.init(jax.random.key(1), tiny.batch(8))
    begin = begin._replace(student=get_member(before.student, "student"))
    begin = begin._replace(
        objective=begin.objective._replace(params=before.objective.params["student"]),
        opt_state={label: before.opt_state[label]["student"] for label in ("student", "objective")},
    )
    expected, _ = run(offline, 1, state=begin)
    tiny.assert_close(get_member(after.student, "student"), expected.student, rtol=1e-5, atol=1e-6)
    tiny.assert_close(after.objective.params["student"], expected.objective.params, rtol=1e-5, atol=1e-6)


def test_frozen_teacher_equals_offline_distillation():
    kd = online(tiny.student, normed, BOTH, teacher_objective=CE, optimizer=SGD, teacher_optimizer=optax.set_to_zero())
    start = kd.init(jax.random.key(1), tiny.batch(8))
    state, _ = run(kd, 2, state=start)
    tiny.assert_equal(get_member(state.student, "teacher").params, get_member(start.student, "teacher").params)
    offline = jaxkd.distill(
        tiny.student,
        jaxkd.teachers.frozen(normed, get_member(start.student, "teacher"), train=True),
        BOTH,
        optimizer=SGD,
    )
    begin = offline.init(jax.random.key(1), tiny.batch(8))._replace(student=get_member(start.student, "student"))
    begin = begin._replace(objective=begin.objective._replace(params=start.objective.params["student"]))
    expected, _ = run(offline, 2, state=begin)
    tiny.assert_close(get_member(state.student, "student"), expected.student, rtol=1e-5, atol=1e-6)


def test_metrics_equal_those_of_offline_distillation():
    kd = distiller(train_metrics=jaxkd.metrics.classification)
    state, found = run(kd, 2)
    seen = tiny.numbers(jax.jit(kd.evaluate)(state, tiny.batch(8)))
    teacher = jaxkd.teachers.frozen(normed, get_member(state.student, "teacher"))
    offline = jaxkd.distill(tiny.student, teacher, CE, optimizer=SGD)
    begin = offline.init(jax.random.key(1), tiny.batch(8))._replace(student=get_member(state.student, "student"))
    expected = tiny.numbers(jax.jit(offline.evaluate)(begin, tiny.batch(8)))
    for name in ("accuracy", "nll", "agreement", "teacher_accuracy"):
        assert seen[name] == pytest.approx(expected[name], rel=1e-5)
        assert np.isfinite(found[0][name]) or name == "nll"


def test_invalid_arguments_raise():
    wrong = term(losses.distance_relation, "student/vector", "teacher/vectr")
    with pytest.raises(ValueError, match=r"teacher entry 'vectr'.*did you mean 'vector'"):
        distiller(objective=wrong).init(jax.random.key(0), tiny.batch(8))
    with pytest.raises(ValueError, match="teacher entry 'logits'"):
        online(tiny.student, normed, KL, teacher_objective=KL, optimizer=SGD).init(jax.random.key(0), tiny.batch(8))


LABELS = {"first": "slow", "second": "fast"}  # of the student's parameters
BY_TREE = {
    "labels": optax.multi_transform({"slow": optax.sgd(0.1), "fast": optax.sgd(1.0)}, LABELS),
    "mask": optax.masked(optax.sgd(0.1), {"first": True, "second": False}),
}


@pytest.mark.parametrize("kind", BY_TREE)
def test_optimizer_with_a_tree_of_the_student_is_refused_for_the_teacher(kind):
    options = {"teacher_objective": CE, "optimizer": BY_TREE[kind]}
    with pytest.raises(ValueError, match=r"also the teacher's.*its init raised.*teacher_optimizer=optax.adam"):
        online(tiny.student, normed, BOTH, **options, objective_optimizer=SGD).init(jax.random.key(0), tiny.batch(8))
    kd = online(tiny.student, normed, BOTH, **options, teacher_optimizer=SGD, objective_optimizer=SGD)
    kd.init(jax.random.key(0), tiny.batch(8))
