"""`schemes.class_wise`: value and gradient, fixed target, resume, errors."""

import jax
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import data, losses, term
from jaxkd.data import SameClass, with_pair
from jaxkd.distillers import preprocess
from jaxkd.schemes import class_wise
from jaxkd.training import fit
from tests import tiny
from tests.schemes import self_runs

SGD = optax.sgd(0.1, momentum=0.9)


def batch(size, seed=0):
    return {**tiny.batch(size, seed), "pair": tiny.batch(size, seed + 100)["image"]}


def plain(optimizer=SGD):
    objective = jaxkd.combine(ce=term(losses.cross_entropy, "student/logits", "batch/label"))
    return jaxkd.distill(tiny.student, jaxkd.teachers.none(), objective, optimizer=optimizer)


def test_step_matches_float64_value_and_gradient():
    kd = class_wise(tiny.student, optimizer=optax.sgd(1.0), weight=0.7, temperature=2.5)
    given = batch(8)
    start = kd.init(jax.random.key(1), given)
    after, metrics = jax.jit(kd.step)(start, given)
    params = self_runs.double(start.student.params)
    target = self_runs.forward(params, given["pair"])[0]  # a constant

    def loss(params):
        logits = self_runs.forward(params, given["image"])[0]
        return self_runs.cross_entropy(logits, given["label"]) + 0.7 * self_runs.kl(target, logits, 2.5)

    np.testing.assert_allclose(tiny.numbers(metrics)["loss"], loss(params), rtol=1e-5)
    self_runs.assert_slopes(loss, params, jax.tree.map(np.subtract, params, self_runs.double(after.student.params)))


def test_defaults_are_the_published_values():
    found = self_runs.run(class_wise(tiny.student, optimizer=SGD), [batch(8)])[1]
    same = self_runs.run(class_wise(tiny.student, optimizer=SGD, weight=1.0, temperature=4.0), [batch(8)])[1]
    assert found == same


def test_example_as_its_own_partner_gives_zero_distillation():
    given = {**tiny.batch(8), "pair": tiny.batch(8)["image"]}
    state, found = self_runs.run(class_wise(tiny.student, optimizer=SGD), [given])
    expected, _ = self_runs.run(plain(), [given])
    assert found[0]["class_wise"] == pytest.approx(0, abs=1e-9)
    tiny.assert_close(state.student, expected.student, rtol=1e-6, atol=1e-7)


def test_evaluation_without_partners():
    kd = class_wise(tiny.student, optimizer=SGD)
    state = kd.init(jax.random.key(0), batch(8))
    found = tiny.numbers(jax.jit(kd.evaluate)(state, tiny.batch(8)))
    expected = tiny.numbers(jax.jit(plain().evaluate)(plain().init(jax.random.key(0), tiny.batch(8)), tiny.batch(8)))
    assert found["class_wise"] == 0
    assert (found["accuracy"], found["nll"]) == (expected["accuracy"], expected["nll"])


def test_extreme_parameters_and_masked_batches_stay_finite():
    kd = class_wise(tiny.student, optimizer=optax.sgd(0.1))
    given = batch(1)
    start = kd.init(jax.random.key(1), given)
    huge = start._replace(student=start.student._replace(params=jax.tree.map(lambda x: 1e4 * x, start.student.params)))
    for state, one in (huge, given), (start, {**given, "mask": np.zeros(1, bool)}):
        after, metrics = jax.jit(kd.step)(state, one)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.student))
        assert np.isfinite(metrics["loss"].sum)
    tiny.assert_equal(after.student, start.student)


@pytest.mark.slow
def test_resume_on_pairs_is_exact(tmp_path):
    whole = data.from_arrays(
        np.random.default_rng(0).integers(0, 255, (21, 4, 4, 2), dtype=np.uint8), np.arange(21) % 3
    )
    augment = data.compose(
        lambda b: data.random_crop_flip(b, seed=0, padding=1),
        lambda b: data.normalize(b, mean=(0.5, 0.5), std=(0.25, 0.25)),
    )
    kd = preprocess(class_wise(tiny.student, optimizer=SGD), train_transform=with_pair(augment))
    train, options = (
        SameClass(data.Resident(whole, batch_size=8)),
        {"key": jax.random.key(3), "chunk": 1, "progress": False},
    )
    expected = fit(kd, train, steps=6, **options)
    fit(kd, train, steps=4, directory=tmp_path, **options)
    found = fit(kd, train, steps=6, directory=tmp_path, **options)
    tiny.assert_equal(found.state, expected.state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.state.student))


def test_invalid_arguments_raise():
    kd = class_wise(tiny.student, optimizer=SGD)
    with pytest.raises(ValueError, match="'pair': there is no such name"):
        kd.init(jax.random.key(0), tiny.batch(4))
    with pytest.raises(ValueError, match="'batch/class'"):
        class_wise(tiny.student, optimizer=SGD, label_path="batch/class").init(jax.random.key(0), batch(4))
