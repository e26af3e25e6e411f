"""Losses on learned embeddings: values, normalization, hyperparameters and errors."""

import jax
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.objectives import on_embeddings
from tests.objectives import plain

GIVEN = plain.context({"f": (6, 2, 2, 3)}, {"f": (6, 5)})
PATHS = ("student/f", "teacher/f")


def embeddings(params):
    """Returns the student's and the teacher's embedding."""
    flat = {side: np.float64(getattr(GIVEN, side)["f"]).reshape(6, -1) for side in ("student", "teacher")}
    return [plain.dense(plain.f64(params[side]), x) for side, x in flat.items()]


def test_correlation_congruence_equals_common_benchmark():
    objective = on_embeddings(losses.consecutive_correlation, *PATHS, weight=0.02)
    params = plain.made(objective, GIVEN).params
    assert jax.tree.map(np.shape, params["student"]) == {"kernel": (12, 128), "bias": (128,)}
    student, teacher = embeddings(params)
    difference = np.abs(student - teacher)
    want = (difference[:-1] * difference[1:]).sum(1).mean()
    np.testing.assert_allclose(objective.apply(params, {}, GIVEN, None).value, 0.02 * want, rtol=1e-5)


def test_normalized_embeddings_equal_numpy_reference():
    objective = on_embeddings(losses.hint_mse, *PATHS, embedding_size=4, normalize=True)
    params = plain.made(objective, GIVEN).params
    first, second = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in embeddings(params))
    want = ((first - second) ** 2).mean()
    np.testing.assert_allclose(objective.apply(params, {}, GIVEN, None).value, want, rtol=1e-5)


def test_zero_embedding_is_finite():
    objective = on_embeddings(losses.hint_mse, *PATHS, embedding_size=4, normalize=True)
    params = jax.tree.map(np.zeros_like, plain.made(objective, GIVEN).params)
    value, gradients = jax.value_and_grad(lambda p: objective.apply(p, {}, GIVEN, None).value)(params)
    assert value == 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_loss_receives_hyperparameters_and_schedules():
    objective = on_embeddings(losses.soft_target_kl, *PATHS, embedding_size=4, temperature=lambda step: 2.0 + step)
    params = plain.made(objective, GIVEN).params
    want = losses.soft_target_kl(*map(np.float32, embeddings(params)), temperature=2.0).mean()
    np.testing.assert_allclose(objective.apply(params, {}, GIVEN, None).value, want, rtol=1e-4)


def test_unknown_feature_raises():
    with pytest.raises(ValueError, match="teacher entry 'g'"):
        on_embeddings(losses.hint_mse, "student/f", "teacher/g").init(jax.random.key(0), GIVEN)
