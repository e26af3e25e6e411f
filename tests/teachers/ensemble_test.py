"""An ensemble averages its members' logits or probabilities and exposes each member's outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, losses, teachers, term
from tests import tiny

BATCH = tiny.batch(7)
Z = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32) * 3
W = np.array([0.5, 0.2, 0.3], np.float32)


def member(seed):
    return teachers.frozen(tiny.teacher_model, tiny.teacher_model.init(jax.random.key(seed), BATCH))


def outputs(teacher, key=None):
    return teacher.apply(teacher.init(jax.random.key(0), BATCH, None), BATCH, key=key)


def softmax(z):
    e = np.exp(z.astype(np.float64) - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_averaged_logits_are_the_weighted_sum():
    np.testing.assert_allclose(teachers.average_logits(Z, W), np.einsum("k,kbc->bc", W, Z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_averaged_probabilities_are_the_averaged_softmax(temperature):
    logits = np.asarray(teachers.average_probabilities(temperature)(Z, W))
    expected = np.einsum("k,kbc->bc", W, softmax(Z / temperature))
    np.testing.assert_allclose(softmax(logits / temperature), expected, rtol=1e-5)
    assert not np.allclose(softmax(logits / 2.5), np.einsum("k,kbc->bc", W, softmax(Z / 2.5)), rtol=1e-3)


@pytest.mark.parametrize("average", [teachers.average_logits, teachers.average_probabilities(2.0)])
def test_extreme_logits_and_weights_of_0(average):
    z = np.stack([Z[0] * 1e4, Z[1], np.full_like(Z[1], np.nan)])
    assert np.isfinite(average(z[:2], np.array([0.5, 0.5], np.float32))).all()
    if average is teachers.average_logits:
        np.testing.assert_array_equal(average(z[1:], np.array([1.0, 0.0], np.float32)), Z[1])
    impossible = np.where(np.arange(4) == 2, -np.inf, Z).astype(np.float32)
    found = np.asarray(average(impossible, W))
    assert np.isneginf(found[:, 2]).all() and np.isfinite(np.delete(found, 2, axis=1)).all()


@pytest.mark.parametrize("average", [teachers.average_logits, teachers.average_probabilities(4.0)])
def test_an_ensemble_of_one_equals_the_teacher(average):
    found, alone = outputs(teachers.ensemble({"a": member(1)}, average=average)), outputs(member(1))
    np.testing.assert_array_equal(found.pop("logits"), alone["logits"])
    tiny.assert_equal(found, {f"a/{name}": value for name, value in alone.items()})


def test_outputs_of_members_are_named_by_member():
    alone = outputs(member(1)), outputs(member(2))
    found = outputs(teachers.ensemble([member(1), member(2)], weights=[0.75, 0.25]))
    for i in range(2):
        tiny.assert_equal({k: found[f"{i}/{k}"] for k in alone[i]}, alone[i])
    np.testing.assert_allclose(found["logits"], 0.75 * alone[0]["logits"] + 0.25 * alone[1]["logits"], rtol=1e-5)
    assert sorted(found) == sorted(["logits", *(f"{i}/{k}" for i in range(2) for k in alone[i])])


def test_weights_by_name_ignore_the_order():
    one = teachers.ensemble({"a": member(1), "b": member(2)}, weights={"b": 0.25, "a": 0.75})
    other = teachers.ensemble([member(1), member(2)], weights=np.array([0.75, 0.25]))
    np.testing.assert_array_equal(outputs(one)["logits"], outputs(other)["logits"])
    equal = outputs(teachers.ensemble([member(1), member(2)]))["logits"]
    np.testing.assert_allclose(equal, (outputs(member(1))["logits"] + outputs(member(2))["logits"]) / 2, rtol=1e-5)


def test_members_are_updated():
    """Distills from a mean teacher and a frozen one, with a term for each."""
    mean = teachers.ema(tiny.student, decay=0.5)
    teacher = teachers.ensemble({"fixed": member(1), "mean": mean}, weights={"fixed": 0.5, "mean": 0.5})
    objective = combine(
        kd=term(losses.soft_target_kl, "student/logits", "teacher/logits"),
        mean=term(losses.logit_mse, "student/logits", "teacher/mean/logits"),
        hint=jaxkd.objectives.hint("student/vector", "teacher/fixed/vector"),
    )
    kd = jaxkd.distill(tiny.student, teacher, objective, optimizer=optax.sgd(0.1))
    start = kd.init(jax.random.key(0), BATCH)
    state, _ = jax.jit(kd.step)(start, BATCH)
    tiny.assert_equal(state.teacher["fixed"], start.teacher["fixed"])
    tiny.assert_equal(state.teacher["mean"], mean.update(start.teacher["mean"], state.student, 1))
    assert not np.array_equal(state.teacher["mean"].params["first"], start.teacher["mean"].params["first"])


def test_metrics_per_teacher():
    teacher = teachers.ensemble({"a": member(1), "b": member(2)})
    objective = term(losses.soft_target_kl, "student/logits", "teacher/logits")
    kd = jaxkd.distill(tiny.student, teacher, objective, optimizer=optax.sgd(0.1), metrics=jaxkd.metrics.per_teacher)
    batch = BATCH | {"mask": np.arange(7) < 5}
    state = kd.init(jax.random.key(0), batch)
    found = tiny.numbers(kd.evaluate(state, batch))
    student, _ = tiny.student.apply(state.student, BATCH, key=None, train=False)
    prediction = np.argmax(student["logits"], axis=-1)
    for name, seed in (("a", 1), ("b", 2)):
        logits = np.asarray(outputs(member(seed))["logits"])
        answer = np.argmax(logits, axis=-1)
        assert found[f"teacher_accuracy/{name}"] == pytest.approx(np.mean((answer == BATCH["label"])[:5]))
        assert found[f"agreement/{name}"] == pytest.approx(np.mean((answer == prediction)[:5]))
        nll = -np.log(softmax(logits)[np.arange(7), BATCH["label"]])[:5].mean()
        assert found[f"teacher_nll/{name}"] == pytest.approx(nll, rel=1e-5)
    assert {"loss", "accuracy", "teacher_accuracy", "agreement"} <= set(found)


def test_errors_name_what_was_expected():
    two = {"a": member(1), "b": member(2)}
    for weights in ([0.5, 0.4], [1.5, -0.5], [1.0], [0.2, 0.3, 0.5], [float("nan"), 1.0]):
        with pytest.raises(ValueError, match=r"ensemble, weights: expected 2 non-negative numbers of sum 1"):
            teachers.ensemble(two, weights=weights)
    with pytest.raises(ValueError, match=r"weights: expected a weight for each of \['a', 'b'\], got \['a', 'c'\]"):
        teachers.ensemble(two, weights={"a": 0.5, "c": 0.5})
    with pytest.raises(ValueError, match="at least one member, got none"):
        teachers.ensemble({})
    with pytest.raises(ValueError, match=r"no slash, got \['a/b'\]"):
        teachers.ensemble({"a/b": member(1)})
    with pytest.raises(ValueError, match=r"average_probabilities, temperature: expected a positive number, got 0"):
        teachers.average_probabilities(0)
    with pytest.raises(ValueError, match=r"ensemble, output of 'b' 'logits'.*Available: nothing"):
        outputs(teachers.ensemble({"a": member(1), "b": teachers.none()}))
    wide = jaxkd.adapters.plain(lambda key, image: jnp.ones((2, 9)), lambda w, image: image[:, 0, 0] @ w)
    other = teachers.frozen(wide, wide.init(jax.random.key(0), BATCH))
    with pytest.raises(ValueError, match=r"logits of one shape, got 'a' float32\[7, 3\], 'b' float32\[7, 9\]"):
        outputs(teachers.ensemble({"a": member(1), "b": other}))
