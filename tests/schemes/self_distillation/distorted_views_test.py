"""`schemes.distorted_views`: value and gradient, fixed targets, distortions, errors."""

import functools

import jax
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import data, losses, term
from jaxkd.data.vision import _distortions
from jaxkd.distillers import preprocess
from jaxkd.schemes import distorted_views
from tests import tiny
from tests.schemes import self_runs

SGD = optax.sgd(0.1, momentum=0.9)


def batch(size, seed=0):
    first = tiny.batch(size, seed)
    return {**first, "view": (first["image"] + 0.3 * tiny.batch(size, seed + 100)["image"]).astype(np.float32)}


def made(**options):
    return distorted_views(tiny.student, **{"optimizer": SGD, "feature": "vector", **options})


def test_step_matches_float64_value_and_gradient():
    kd = made(optimizer=optax.sgd(1.0), weight=0.7, temperature=2.5, feature_weight=3.0)
    given = batch(8)
    start = kd.init(jax.random.key(1), given)
    after, metrics = jax.jit(kd.step)(start, given)
    params = self_runs.double(start.student.params)
    targets = [self_runs.forward(params, given[name])[0] for name in ("image", "view")]  # constants

    def loss(params):
        (one, f), (two, g) = (self_runs.forward(params, given[name]) for name in ("image", "view"))
        hard = self_runs.cross_entropy(one, given["label"]) + self_runs.cross_entropy(two, given["label"])
        soft = self_runs.kl(targets[1], one, 2.5) + self_runs.kl(targets[0], two, 2.5)
        return hard + 0.7 * soft + 3.0 * ((f.mean(axis=0) - g.mean(axis=0)) ** 2).sum()

    np.testing.assert_allclose(tiny.numbers(metrics)["loss"], loss(params), rtol=1e-5)
    self_runs.assert_slopes(loss, params, jax.tree.map(np.subtract, params, self_runs.double(after.student.params)))


def test_equal_views_give_zero_distillation():
    given = {**tiny.batch(8), "view": tiny.batch(8)["image"]}
    found = self_runs.run(made(), [given])[1][0]
    assert found["ce"] == pytest.approx(found["ce_view"], rel=1e-6)
    assert found["loss"] == pytest.approx(2 * found["ce"], rel=1e-6)
    assert max(abs(found[name]) for name in ("kl", "kl_view", "mmd")) < 1e-8


def test_zero_weights_train_on_both_views():
    objective = jaxkd.combine(ce=term(losses.cross_entropy, "student/logits", "batch/label"))
    plain = jaxkd.distill(tiny.student, jaxkd.teachers.none(), objective, optimizer=optax.sgd(0.2))
    batches = [batch(8, i) for i in range(3)]
    both = [
        {"image": np.concatenate([b["image"], b["view"]]), "label": np.concatenate([b["label"], b["label"]])}
        for b in batches
    ]
    expected, _ = self_runs.run(plain, both)  # twice the rate, as its loss is a mean and not a sum
    state, _ = self_runs.run(made(optimizer=optax.sgd(0.1), weight=0.0, feature_weight=0.0), batches)
    tiny.assert_close(state.student, expected.student)


def test_exchanged_views_give_the_same_step():
    given = batch(8)
    swapped = {**given, "image": given["view"], "view": given["image"]}
    (state, found), (other, back) = (self_runs.run(made(), [one]) for one in (given, swapped))
    tiny.assert_close(state.student, other.student)
    assert found[0]["kl"] == pytest.approx(back[0]["kl_view"], rel=1e-5)


@pytest.mark.slow
def test_views_from_random_distortions():
    augment = data.compose(
        functools.partial(data.random_crop_flip, seed=0, padding=1),
        functools.partial(data.normalize, mean=(0.5, 0.5), std=(0.25, 0.25)),
    )
    normalize = functools.partial(data.normalize, mean=(0.5, 0.5), std=(0.25, 0.25))
    kd = preprocess(made(), train_transform=_distortions.two_views(augment), eval_transform=normalize)
    image = np.random.default_rng(0).integers(0, 255, (6, 4, 4, 2), dtype=np.uint8)
    raw = {**tiny.batch(6), "image": image, "epoch": np.zeros(6, np.int32)}
    state, found = self_runs.run(kd, [raw])
    assert found[0]["kl"] > 0
    assert tiny.numbers(jax.jit(kd.evaluate)(state, raw))["kl"] == 0  # single images
    other, _ = self_runs.run(kd, [raw], self_runs.placed(kd))
    tiny.assert_close(other, state, rtol=1e-4, atol=1e-5)


def test_feature_none_omits_the_term():
    found = self_runs.run(made(feature=None), [batch(4)])[1][0]
    assert "mmd" not in found
    assert {"ce", "ce_view", "kl", "kl_view"} <= found.keys()


def test_extreme_parameters_and_masked_batches_stay_finite():
    kd, given = made(optimizer=optax.sgd(0.1)), batch(1)
    start = kd.init(jax.random.key(1), given)
    huge = start._replace(student=start.student._replace(params=jax.tree.map(lambda x: 1e4 * x, start.student.params)))
    for state, one in (huge, given), (start, {**given, "mask": np.zeros(1, bool)}):
        after, metrics = jax.jit(kd.step)(state, one)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.student))
        assert np.isfinite(metrics["loss"].sum)
    tiny.assert_equal(after.student, start.student)


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="'view': there is no such name"):
        made().init(jax.random.key(0), tiny.batch(4))
    with pytest.raises(ValueError, match=r"student entry 'pooled'"):
        made(feature="pooled").init(jax.random.key(0), batch(4))
