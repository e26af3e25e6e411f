"""`schemes.branches`: terms of the loss, exported student, errors."""

import jax
import numpy as np
import pytest

import jaxkd
from jaxkd import losses, term
from jaxkd.schemes import branches
from jaxkd.schemes.peers import ramp_up
from jaxkd.wrappers import Exit, get_member
from tests import tiny
from tests.schemes.peers_toy import CE, KL, SGD, head, normed, run

EXITS = {"second": Exit("map", head()), "third": Exit("map", head())}


def distiller(student=tiny.student, exits=EXITS, feature="map", taught=KL, optimizer=SGD, **options):
    return branches(student, exits, feature=feature, own=CE, taught=taught, optimizer=optimizer, **options)


def test_loss_is_the_weighted_sum_of_its_terms():
    taught = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=3.0, weight=ramp_up(4))
    _, found = run(distiller(taught=taught), 2)
    for step, one in enumerate(found):
        own = sum(one[f"own/{name}"] for name in ("model", "second", "third", "ensemble"))
        kl = sum(one[f"taught/{name}"] for name in ("model", "second", "third"))
        weight = np.exp(-5 * (1 - step / 4) ** 2)
        assert one["taught/second/weight"] == pytest.approx(weight, rel=1e-5)
        assert one["loss"] == pytest.approx(own + weight * kl, rel=1e-5)


def test_student_exits_and_gate_are_trained():
    kd = distiller()
    start = kd.init(jax.random.key(1), tiny.batch(8))
    state, found = run(kd, 10, state=start, batch=lambda size, seed=0: tiny.batch(size))
    for before, after in zip(
        jax.tree.leaves((start.student, start.objective)),
        jax.tree.leaves((state.student, state.objective)),
        strict=True,
    ):
        assert (before != after).any()
    assert found[-1]["loss"] < found[0]["loss"]


def test_member_model_is_evaluated_without_exits():
    kd = distiller(normed, {"second": Exit("vector", head(pool=False))}, "vector")
    state, _ = run(kd, 3)
    seen = tiny.numbers(jax.jit(kd.evaluate)(state, tiny.batch(8)))
    outputs, _ = normed.apply(get_member(state.student, "model"), tiny.batch(8), key=None, train=False)
    nll = losses.cross_entropy(outputs["logits"], tiny.batch(8)["label"]).mean()
    assert seen["nll"] == pytest.approx(float(nll), rel=1e-5)
    by_hand = np.asarray(outputs["vector"]) @ np.asarray(get_member(state.student, "second").params)
    nll = losses.cross_entropy(by_hand, tiny.batch(8)["label"]).mean()
    assert seen["nll/second"] == seen["own/second"] == pytest.approx(float(nll), rel=1e-5)


def test_initial_student_equals_the_plain_one():
    start = distiller().init(jax.random.key(1), tiny.batch(8))
    plain = jaxkd.distill(tiny.student, jaxkd.teachers.none(), CE, optimizer=SGD).init(jax.random.key(1), tiny.batch(8))
    tiny.assert_equal(get_member(start.student, "model"), plain.student)


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="at least one, got none"):
        distiller(exits={})
    with pytest.raises(ValueError, match="named 'ensemble'"):
        distiller(exits={"ensemble": EXITS["second"]})
    with pytest.raises(ValueError, match=r"'maps'.*did you mean 'map'"):
        distiller(feature="maps").init(jax.random.key(0), tiny.batch(8))


@pytest.mark.parametrize("steps", [0, -3])
def test_ramp_up_without_steps_raises(steps):
    with pytest.raises(ValueError, match=f"ramp_up, steps: expected a positive number, got {steps}"):
        ramp_up(steps)
