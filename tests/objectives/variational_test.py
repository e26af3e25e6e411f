"""Variational information distillation: values, pooling, learned variances and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine
from jaxkd.objectives import variational
from tests import tiny
from tests.objectives import plain

OBJECTIVE = variational("student/f", "teacher/f", weight=2.0)


def variance(params):
    return np.log1p(np.exp(np.float64(params["raw_variance"]))) + 1e-5


@pytest.mark.parametrize(
    ("student", "teacher"), [((3, 4), (3, 5)), ((3, 6, 4), (3, 6, 5)), ((3, 8, 4, 4), (3, 4, 4, 5))], ids=str
)
def test_value_equals_numpy_reference(student, teacher):
    given = plain.context({"f": student}, {"f": teacher})
    params = plain.made(OBJECTIVE, given).params
    x, t = (np.float64(side["f"]) for side in (given.student, given.teacher))
    mu = plain.pool(x, *teacher[1:3]) if len(student) == 4 else x
    layers = plain.f64(params["mean"])
    for name in "first", "second":
        mu = plain.relu(mu @ layers[name]["kernel"])
    mu = mu @ layers["third"]["kernel"]
    want = np.mean((mu - t) ** 2 / variance(params) + np.log(variance(params))) / 2
    out = OBJECTIVE.apply(params, {}, given, None)
    np.testing.assert_allclose(out.value, 2 * want, rtol=1e-5)
    np.testing.assert_allclose(out.metrics[""].sum / 3, want, rtol=1e-5)


def test_smaller_student_map_pools_the_teacher():
    given = plain.context({"f": (2, 2, 2, 4)}, {"f": (2, 4, 4, 5)})
    params = plain.made(OBJECTIVE, given).params
    pooled = given._replace(teacher={"f": plain.pool(given.teacher["f"], 2, 2)})
    found, want = (OBJECTIVE.apply(params, {}, c, None).value for c in (given, pooled))
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_variance_starts_at_5_and_is_learned():
    objective = combine(vid=variational("student/map", "teacher/map"))
    kd = jaxkd.distill(tiny.student, tiny.teacher(), objective, optimizer=optax.sgd(0.5))
    state = kd.init(jax.random.key(0), tiny.batch(8))
    np.testing.assert_allclose(variance(state.objective.params["vid"]), 5.0, rtol=1e-5)
    after, metrics = jax.jit(kd.step)(state, tiny.batch(8))
    assert (variance(after.objective.params["vid"]) < 5.0).all()  # the features differ by less than 5
    _, later = jax.jit(kd.step)(after, tiny.batch(8))
    assert later["vid"].sum < metrics["vid"].sum


def test_features_sets_the_hidden_width():
    given = jax.eval_shape(lambda: plain.context({"f": (2, 4)}, {"f": (2, 5)}))
    mean = variational("student/f", "teacher/f", hidden_size=7).init(jax.random.key(0), given).params["mean"]
    assert [mean[name]["kernel"].shape for name in ("first", "second", "third")] == [(4, 7), (7, 7), (7, 5)]


def test_mismatched_features_raise():
    with pytest.raises(ValueError, match="variational: expected two features"):
        OBJECTIVE.init(jax.random.key(0), plain.context({"f": (2, 4)}, {"f": (2, 3, 5)}))
    with pytest.raises(ValueError, match="student entry 'g'"):
        variational("student/g", "teacher/f").init(jax.random.key(0), plain.context({"f": (2, 4)}, {"f": (2, 5)}))


def test_integer_teacher_feature_raises():
    given = plain.context({"f": (2, 4)}, {})._replace(teacher={"f": jnp.ones((2, 5), int)})
    with pytest.raises(ValueError, match="float"):
        OBJECTIVE.init(jax.random.key(0), given)
