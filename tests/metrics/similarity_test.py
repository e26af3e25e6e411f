"""Similarity of layers: references, invariances, masks, and metrics of a distiller on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import losses, term
from jaxkd.metrics import _similarity
from tests import tiny

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(50, 6)), RNG.normal(size=(50, 4))


def cka(x, y):
    """Linear CKA from Gram matrices of the examples and the centering matrix, as in the paper."""
    centring = np.eye(len(x)) - 1 / len(x)
    k, l = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring  # noqa: E741
    return (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())


def canonical_correlations(x, y):
    """Mean canonical correlation from covariance matrices."""
    x, y = x - x.mean(0), y - y.mean(0)
    inverse_root = lambda c: np.linalg.inv(np.linalg.cholesky(c)).T  # noqa: E731
    return np.linalg.svd(inverse_root(x.T @ x).T @ x.T @ y @ inverse_root(y.T @ y), compute_uv=False)


@pytest.mark.parametrize("features", [4, 200])  # Gram matrices of features, and of examples
def test_cka_equals_its_reference(features):
    x, y = RNG.normal(size=(50, features)), RNG.normal(size=(50, 7))
    y[:, 0] += x[:, 0]
    with jax.enable_x64(True):
        np.testing.assert_allclose(_similarity.linear_cka(x, y), cka(x, y), rtol=1e-10)
    np.testing.assert_allclose(_similarity.linear_cka(x.astype(np.float32), y.astype(np.float32)), cka(x, y), rtol=1e-4)


def test_svcca_without_reduction_is_the_mean_canonical_correlation():
    y = Y + X[:, :4]
    with jax.enable_x64(True):
        found = _similarity.svcca(X, y, variance=1.0)
    np.testing.assert_allclose(found, canonical_correlations(X, y).mean(), rtol=1e-8)


def test_svcca_drops_directions_of_small_variance():
    """Only one direction of x remains, which y has too."""
    x = np.concatenate([100 * Y[:, :1], 0.01 * RNG.normal(size=(50, 5))], axis=1)
    assert _similarity.svcca(x.astype(np.float32), Y[:, :1].astype(np.float32)) > 0.999
    assert _similarity.svcca(x.astype(np.float32), Y.astype(np.float32), variance=1.0) < 0.9


@pytest.mark.parametrize("measure", [_similarity.linear_cka, _similarity.svcca])
def test_similarity_is_invariant_to_rotation_and_scale(measure):
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    turned = x @ jnp.asarray(np.linalg.qr(RNG.normal(size=(6, 6)))[0], jnp.float32)
    np.testing.assert_allclose(measure(3 * turned + 1, y), measure(x, y), rtol=1e-4)
    np.testing.assert_allclose(measure(y, x), measure(x, y), rtol=1e-4)
    np.testing.assert_allclose(measure(x, x), 1, rtol=1e-5)
    np.testing.assert_allclose(measure(x.reshape(50, 2, 3), y), measure(x, y), rtol=1e-6)
    assert measure(jnp.ones((50, 3)), y) == 0
    assert 0 <= measure(x, y) < 0.7


@pytest.mark.parametrize("measure", [_similarity.linear_cka, _similarity.svcca])
def test_masking_equals_dropping(measure):
    where = np.arange(50) % 3 > 0
    x, y = (np.where(where[:, None], a, np.nan).astype(np.float32) for a in (X, Y))
    expected = measure(X[where].astype(np.float32), Y[where].astype(np.float32))
    np.testing.assert_allclose(measure(x, y, where=where), expected, rtol=1e-4)


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match=r"y: expected.*\[50, 6\].*\[49, 4\]"):
        _similarity.linear_cka(X, Y[:49])
    with pytest.raises(ValueError, match=r"variance: expected a share.*0"):
        _similarity.svcca(X, Y, variance=0)


def test_metrics_of_an_evaluation_on_several_devices():
    pairs = {"map": ("student/map", "teacher/map"), "last": ("student/vector", "teacher/vector")}
    kd = jaxkd.distill(
        tiny.student,
        tiny.teacher(),
        term(losses.cross_entropy, "student/logits", "batch/label"),
        optimizer=optax.sgd(0.1),
        metrics=_similarity.layer_similarity(pairs),
    )
    state, batch = kd.init(jax.random.key(0), tiny.batch(13)), tiny.batch(13)
    found = tiny.numbers(kd.evaluate(state, batch))
    student, _ = tiny.student.apply(state.student, batch, key=None, train=False)
    teacher, _ = tiny.teacher_model.apply(state.teacher, batch, key=None, train=False)
    assert found["similarity/last"] == pytest.approx(
        cka(np.array(student["vector"]), np.array(teacher["vector"])), 1e-3
    )
    placed = jaxkd.parallel.pmap(kd, jax.devices()[:4])
    assert tiny.numbers(placed.evaluate(state, batch)) == pytest.approx(found, rel=1e-4)
