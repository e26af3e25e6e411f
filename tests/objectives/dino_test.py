"""DINO: values by the formula in float64, the center as state, and what its metrics say of collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.objectives import dino
from tests import objective_runs, tiny
from tests.objective_runs import initialize, run

BATCH, PROTOTYPES = 6, 5
STUDENT = ("student/a", "student/b", "student/c")
TEACHER = ("teacher/a", "teacher/b")
KEEP = np.array([True, False, True, True, False, True])


def arrays(seed=0, mask=None):
    rng = np.random.default_rng(seed)
    draw = lambda: rng.normal(size=(BATCH, PROTOTYPES)).astype(np.float32)  # noqa: E731
    batch = {"label": np.zeros(BATCH, np.int32)}
    return {
        "student": {name: draw() for name in "abc"},
        "teacher": {name: 0.2 * draw() for name in "ab"},
        "batch": batch if mask is None else {**batch, "mask": mask},
    }


def softmax(z, temperature):
    e = np.exp(z / temperature - np.max(z / temperature, axis=-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(given, center, *, student_temperature=0.1, teacher_temperature=0.04):
    """Mean over examples and pairs of views, as in the pseudocode of the paper."""
    rows = given["batch"].get("mask", np.ones(BATCH, bool))
    values, entropies, targets = [], [], []
    for t, teacher in enumerate("ab"):
        q = softmax(np.float64(given["teacher"][teacher][rows]) - center, teacher_temperature)
        targets.append(q)
        entropies.append(-np.sum(q * np.log(q), -1).mean())
        for s, student in enumerate("abc"):
            if s != t:
                p = softmax(np.float64(given["student"][student][rows]), student_temperature)
                values.append(-np.sum(q * np.log(p), -1).mean())
    marginal = np.mean(targets, axis=(0, 1))
    return {
        "": np.mean(values),
        "kl": np.mean(values) - np.mean(entropies),
        "teacher_entropy": np.mean(entropies),
        "marginal_entropy": -np.sum(marginal * np.log(marginal)),
    }


@pytest.mark.parametrize("mask", [None, KEEP], ids=["all", "masked"])
def test_value_center_and_metrics_follow_the_formula(mask):
    objective = dino(STUDENT, TEACHER, weight=2.0)
    variables, center = initialize(objective, arrays()), np.zeros(PROTOTYPES)
    for seed in range(3):
        given = arrays(seed, mask)
        found = run(objective, variables, given)
        want = reference(given, center)
        np.testing.assert_allclose(found.value, 2 * want[""], rtol=1e-4)
        for name, number in want.items():
            np.testing.assert_allclose(found.metrics[name], number, rtol=1e-4, atol=1e-5)
        rows = slice(None) if mask is None else mask
        center = 0.9 * center + 0.1 * np.mean([given["teacher"][name][rows] for name in "ab"], axis=(0, 1))
        np.testing.assert_allclose(found.state["center"], center, rtol=1e-5, atol=1e-7)
        variables = variables._replace(state=found.state)


def test_gradient_is_the_difference_of_distributions():
    """``∂L/∂z_s = (p_s − mean q) / T_s`` by the share of the view's pairs; none reaches a view without a pair."""
    given, objective = arrays(), dino(("student/a", "student/b"), ("teacher/a",))
    found = run(objective, initialize(objective, given), given)
    q = softmax(np.float64(given["teacher"]["a"]), 0.04)
    p = softmax(np.float64(given["student"]["b"]), 0.1)
    np.testing.assert_allclose(found.student["b"], (p - q) / 0.1 / BATCH, rtol=1e-4, atol=1e-6)
    assert not found.student["a"].any()


def test_evaluation_leaves_the_center():
    given, objective = arrays(), dino(STUDENT, TEACHER)
    variables = initialize(objective, given)
    variables = variables._replace(state=run(objective, variables, given).state)
    tiny.assert_equal(run(objective, variables, given, key=None).state, variables.state)


def test_a_batch_without_examples_leaves_the_center():
    given, objective = arrays(mask=np.zeros(BATCH, bool)), dino(STUDENT, TEACHER)
    state = {"center": jnp.arange(5.0)}
    found = run(objective, initialize(objective, given)._replace(state=state), given)
    tiny.assert_equal(found.state, state)
    assert found.value == 0


def test_schedules_of_both_temperatures():
    objective = dino(STUDENT, TEACHER, temperature=lambda step: step / 10, teacher_temperature=lambda step: step / 50)
    given = arrays()  # the step of `objective_runs` is 3
    want = reference(given, 0, student_temperature=0.3, teacher_temperature=0.06)
    np.testing.assert_allclose(run(objective, initialize(objective, given), given).value, want[""], rtol=1e-4)


@pytest.mark.parametrize(("kind", "entropy", "marginal"), [("one", 0, 0), ("uniform", np.log(5), np.log(5))])
def test_collapse_is_visible(kind, entropy, marginal):
    """All outputs are equal: far apart, so that one prototype is certain, or not at all."""
    given = arrays()
    row = np.float32([9, 0, 0, 0, 0]) * (kind == "one")
    given["student"] = {name: np.tile(row, (BATCH, 1)) for name in "abc"}
    given["teacher"] = {name: np.tile(row, (BATCH, 1)) for name in "ab"}
    objective = dino(STUDENT, TEACHER)
    metrics = run(objective, initialize(objective, given), given).metrics
    np.testing.assert_allclose(metrics["kl"], 0, atol=1e-5)
    np.testing.assert_allclose(metrics["teacher_entropy"], entropy, atol=1e-5)
    np.testing.assert_allclose(metrics["marginal_entropy"], marginal, atol=1e-5)


def test_extreme_outputs_have_finite_gradients():
    given, objective = arrays(), dino(STUDENT, TEACHER)
    given["student"]["a"][0] = [1e4, -1e4, 0, 1e4, 0]
    given["teacher"]["a"][0] = [-1e4, 1e4, 0, 0, 0]
    found = run(objective, initialize(objective, given), given)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.mark.slow
@pytest.mark.parametrize(("way", "count"), [("pmap", 2), ("shard_map", 2), ("jit", 2)])
def test_center_is_that_of_all_devices(way, count):
    given, objective = arrays(mask=KEEP), dino(STUDENT, TEACHER)
    variables = initialize(objective, given)
    want = run(objective, variables, given)
    found = objective_runs.on_devices(objective, way, count)(variables, given)
    tiny.assert_close(found._asdict(), want._asdict(), rtol=1e-5, atol=1e-6)


def test_wrong_views_and_outputs_are_errors():
    with pytest.raises(ValueError, match="expected a list of paths"):
        dino("student/a", TEACHER)
    with pytest.raises(ValueError, match="3 teacher views and 2 student views"):
        dino(STUDENT[:2], (*TEACHER, "teacher/c"))
    with pytest.raises(ValueError, match="1 teacher views and 1 student views"):
        dino(STUDENT[:1], TEACHER[:1])
    with pytest.raises(ValueError, match="dino, teacher_temperature: expected a positive number"):
        dino(STUDENT, TEACHER, teacher_temperature=0.0)
    with pytest.raises(ValueError, match="dino, center_momentum: expected a number from 0 to 1"):
        dino(STUDENT, TEACHER, center_momentum=1.5)
    given = arrays()
    given["student"]["c"] = given["student"]["c"][:, :3]
    with pytest.raises(ValueError, match=r"dino, student/c: expected outputs .* \[6, 5\], got float32\[6, 3\]"):
        initialize(dino(STUDENT, TEACHER), given)
