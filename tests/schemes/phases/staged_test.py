"""`schemes.staged`: one distiller equals separate runs, shared parameters, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, losses, objectives, schemes, term
from jaxkd.schemes.phases import Stage
from tests import tiny

HINT = combine(hint=objectives.hint("student/map", "teacher/map", weight=optax.linear_schedule(3.0, 1.0, 2)))
KD = combine(
    ce=term(losses.cross_entropy, "student/logits", "batch/label", weight=0.5),
    kd=term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.9),
)
SGD, ADAM = optax.sgd(0.05, momentum=0.9), optax.adam(1e-2)


def run(kd, steps, *, step=None, seed=1, state=None):
    state = kd.init(jax.random.key(seed), tiny.batch(8)) if state is None else state
    step, found = step or jax.jit(kd.step), []
    for i in range(steps):
        state, metrics = step(state, tiny.batch(8, i))
        found.append(tiny.numbers(metrics))
    return state, found


@functools.cache
def fitnets(first=ADAM, second=SGD, then=KD, **options):
    return schemes.staged(tiny.student, tiny.teacher(), Stage(HINT, first, 3, **options), Stage(then, second))


def test_two_stages_equal_two_runs():
    one = jaxkd.distill(tiny.student, tiny.teacher(), HINT, optimizer=ADAM)
    two = jaxkd.distill(tiny.student, tiny.teacher(), KD, optimizer=SGD)
    first, hinted = run(one, 3)
    start = two.init(jax.random.key(9), tiny.batch(8))._replace(student=first.student)
    step = jax.jit(two.step)
    for i in range(3, 5):
        start, _ = step(start, tiny.batch(8, i))
    state, found = run(fitnets(), 5)
    tiny.assert_close(state.student, start.student)
    tiny.assert_close(state.objective.params["hint"], first.objective.params["hint"])
    tiny.assert_close(state.opt_state["1"], start.opt_state)
    assert int(state.step) == 5
    assert [one["stage"] for one in found] == [0, 0, 0, 1, 1]
    # Schedules count the stage's steps, and metrics of the other stage have no count.
    assert [one["hint/weight"] for one in found[:3]] == [one["hint/weight"] for one in hinted] == [3, 2, 1]
    assert all(np.isnan(one["kd"]) for one in found[:3])
    assert all(np.isnan(one["hint"]) for one in found[3:])


def test_parameters_are_shared_by_name():
    """The second stage trains the regressor of the first one further."""
    later = combine(hint=objectives.hint("student/map", "teacher/map"), ce=KD)
    state, _ = run(fitnets(then=later), 3)
    alone, _ = run(jaxkd.distill(tiny.student, tiny.teacher(), HINT, optimizer=ADAM), 3)
    tiny.assert_close(state.objective.params, alone.objective.params)
    after, _ = run(fitnets(then=later), 4)
    assert (after.objective.params["hint"]["kernel"] != state.objective.params["hint"]["kernel"]).any()


@pytest.mark.slow
def test_factor_transfer_in_two_stages():
    """First the paraphraser trains alone; then it is fixed and the translator trains."""
    pretrained = combine(ft=combine(paraphraser=objectives.paraphraser("teacher/map")))
    transfer = combine(ce=KD, ft=objectives.factor_translator("student/map", "teacher/map"))
    kd = schemes.staged(
        tiny.student,
        tiny.teacher(),
        Stage(pretrained, optax.adam(1e-2), 20, student=False),
        Stage(transfer, SGD),
    )
    start = kd.init(jax.random.key(1), tiny.batch(8))
    state, found = run(kd, 20)
    tiny.assert_equal(state.student, start.student)
    assert found[-1]["ft/paraphraser"] < found[0]["ft/paraphraser"]
    learned = state.objective.params["ft"]["paraphraser"]
    assert (
        learned["encoder"]["first"]["kernel"]
        != start.objective.params["ft"]["paraphraser"]["encoder"]["first"]["kernel"]
    ).any()
    after, found = run(kd, 22)
    tiny.assert_equal(after.objective.params["ft"]["paraphraser"], learned)
    tiny.assert_equal(after.objective.state["ft"]["paraphraser"], learned)
    assert (after.student.params["first"] != state.student.params["first"]).any()
    assert np.isfinite(found[-1]["ft"])


def test_optimizer_is_initialized_at_the_start_of_its_stage():
    """An optimizer whose state contains parameters gets those of its first step."""

    def remember():
        def init(params):
            return jax.tree.map(jnp.copy, params)

        def update(updates, state, params=None):
            return jax.tree.map(lambda g: -0.1 * g, updates), state

        return optax.GradientTransformation(init, update)

    kd = fitnets(second=remember())
    before, _ = run(kd, 3)
    after, _ = run(kd, 5)
    tiny.assert_equal(after.opt_state["1"]["student"], before.student.params)


def test_evaluation_uses_the_current_stage():
    kd = fitnets()
    state, _ = run(kd, 4)
    before = jax.tree.map(jnp.copy, state)
    found = tiny.numbers(jax.jit(kd.evaluate)(state, tiny.batch(8)))
    tiny.assert_equal(state, before)
    assert found["stage"] == 1
    assert np.isfinite(found["kd"])
    assert np.isnan(found["hint"])
    assert {"accuracy", "agreement"} <= found.keys()


def test_invalid_arguments_raise():
    student, teacher = tiny.student, tiny.teacher()
    with pytest.raises(ValueError, match="stages: expected at least one"):
        schemes.staged(student, teacher)
    with pytest.raises(ValueError, match="stage 0, steps: expected a number, got None"):
        schemes.staged(student, teacher, Stage(HINT, SGD), Stage(KD, SGD))
    with pytest.raises(ValueError, match=r"stage 1, steps: expected None.*got 4"):
        schemes.staged(student, teacher, Stage(HINT, SGD, 3), Stage(KD, SGD, 4))
    with pytest.raises(ValueError, match="stage 0, steps: expected at least 1, got 0"):
        schemes.staged(student, teacher, Stage(HINT, SGD, 0), Stage(KD, SGD))
    other = combine(hint=objectives.hint("student/vector", "teacher/vector"))
    kd = schemes.staged(student, teacher, Stage(HINT, SGD, 3), Stage(other, SGD))
    with pytest.raises(ValueError, match=r"stage 1, parameters, 'hint', 'kernel'.*other shapes"):
        kd.init(jax.random.key(0), tiny.batch(8))
