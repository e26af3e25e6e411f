"""Overhaul and activation boundaries: values behind the connector, running statistics, margins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.objectives import boundary_connector, overhaul_connector
from tests import tiny
from tests.objectives import plain

KEY = jax.random.key(0)
MARGIN = np.array([-0.1, -0.5, 0.0, -1.0, -2.0])
GIVEN = plain.context({"f": (6, 2, 3, 4)}, {"f": (6, 2, 3, 5)})
OFD = overhaul_connector("student/f", "teacher/f", jnp.asarray(MARGIN, jnp.float32), weight=0.5)
AB = boundary_connector("student/f", "teacher/f", margin=0.7, weight=0.5)


def partial(s, t):
    t = np.maximum(t, MARGIN)
    return ((s - t) ** 2 * ((s > t) | (t > 0))).sum((1, 2, 3))


def boundary(s, t):
    off, on = (s > -0.7) & (t <= 0), (s <= 0.7) & (t > 0)
    return ((s + 0.7) ** 2 * off + (s - 0.7) ** 2 * on).sum((1, 2, 3))


@pytest.mark.parametrize(("objective", "formula"), [(OFD, partial), (AB, boundary)], ids=["overhaul", "boundary"])
def test_value_equals_numpy_reference_in_training_and_evaluation(objective, formula):
    params, state = plain.made(objective, GIVEN)
    x, t = (np.float64(side["f"]) for side in (GIVEN.student, GIVEN.teacher))
    own = plain.f64(params)
    out = objective.apply(params, state, GIVEN, KEY)
    np.testing.assert_allclose(out.value, 0.5 * formula(plain.connector(own, x), t).mean(), rtol=1e-5)
    np.testing.assert_allclose(out.metrics[""].sum / 6, out.value / 0.5, rtol=1e-5)

    mapped = x @ own["kernel"]
    moved = {"mean": mapped.mean((0, 1, 2)), "var": mapped.var((0, 1, 2))}
    for name, new in moved.items():
        np.testing.assert_allclose(out.state[name], 0.9 * np.float64(state[name]) + 0.1 * new, rtol=1e-5)

    running = plain.f64(out.state)
    normal = (mapped - running["mean"]) / np.sqrt(running["var"] + 1e-5) * own["norm"]["scale"] + own["norm"]["bias"]
    evaluated = objective.apply(params, out.state, GIVEN, None)
    np.testing.assert_allclose(evaluated.value, 0.5 * formula(normal, t).mean(), rtol=1e-5)
    tiny.assert_equal(evaluated.state, out.state)


def test_margin_comes_from_teacher_batch_norm():
    bias, scale = jnp.array([0.3, -0.2, 0.0, 1.0, 9.0]), jnp.array([1.0, -0.5, 2.0, 0.1, 1.0])
    margin = losses.overhaul_margin(bias, scale)
    params, state = plain.made(OFD, GIVEN)
    found = overhaul_connector("student/f", "teacher/f", margin, weight=0.5).apply(params, state, GIVEN, KEY).value
    mapped = plain.connector(plain.f64(params), np.float64(GIVEN.student["f"]))
    want = losses.overhaul(jnp.asarray(mapped, jnp.float32), jnp.asarray(GIVEN.teacher["f"]), margin).mean() / 2
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_mismatched_features_and_margins_raise_at_initialization():
    sizes = plain.context({"f": (6, 4, 4, 4)}, {"f": (6, 2, 2, 5)})
    for objective in OFD, AB:
        with pytest.raises(ValueError, match="teacher: expected"):
            objective.init(KEY, sizes)
    with pytest.raises(ValueError, match="margin"):
        overhaul_connector("student/f", "teacher/f", jnp.zeros(4)).init(KEY, GIVEN)
    with pytest.raises(ValueError, match="margin"):
        boundary_connector("student/f", "teacher/f", margin=-1.0).init(KEY, GIVEN)
