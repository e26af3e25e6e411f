"""Ensembles of members' logits: against NumPy, a solver of the convex problem, and extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from jaxkd.losses import ensembles

RNG = np.random.default_rng(0)
ALL = (ensembles.best_logits, ensembles.combined_logits, ensembles.min_logits)


def draw(members, batch=7, classes=5, scale=2.0):
    logits = RNG.normal(0, scale, (members, batch, classes))
    return logits.astype(np.float32), RNG.integers(0, classes, batch).astype(np.int32)


def cross_entropy(logits, labels):
    own = np.take_along_axis(logits, np.broadcast_to(labels[..., None], (*logits.shape[:-1], 1)), axis=-1)[..., 0]
    return logsumexp(logits, axis=-1) - own


def test_best_is_the_member_of_the_smallest_loss():
    logits, labels = draw(3)
    chosen = cross_entropy(logits.astype(np.float64), labels).argmin(axis=0)
    assert len(set(chosen.tolist())) == 3
    np.testing.assert_array_equal(ensembles.best_logits(logits, labels), logits[chosen, np.arange(7)])


def test_min_is_the_smallest_gap_of_each_class():
    logits, labels = draw(3)
    expected = np.stack([(logits[:, i] - logits[:, i, labels[i], None]).min(axis=0) for i in range(7)])
    found = np.asarray(ensembles.min_logits(logits, labels))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Never worse than the best member.
    assert (cross_entropy(found, labels) <= cross_entropy(logits, labels).min(axis=0) + 1e-6).all()


@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_combined_is_the_solution_of_the_convex_problem(members, scale):
    logits, labels = draw(members, scale=scale)
    found = np.asarray(ensembles.combined_logits(logits, labels), np.float64)
    exact = logits.astype(np.float64)
    for i, label in enumerate(labels):

        def loss(alpha, i=i, label=label):
            mixed = alpha @ exact[:, i]
            return logsumexp(mixed) - mixed[label]

        starts = [*np.eye(members), np.full(members, 1 / members)]
        options = {"bounds": [(0, 1)] * members, "constraints": {"type": "eq", "fun": lambda a: a.sum() - 1}}
        ends = [minimize(loss, start, method="SLSQP", tol=1e-12, **options) for start in starts]
        # An end outside of the constraint, where the solver has stopped without success, is no solution.
        best = min(end.fun for end in ends if abs(end.x.sum() - 1) < 1e-9 and end.x.min() > -1e-9)
        assert cross_entropy(found[i], label) <= best + 2e-6
        assert cross_entropy(found[i], label) >= best - 2e-6  # it is a convex combination


def test_in_double_precision():
    logits, labels = draw(3)
    with jax.enable_x64(True):
        for ensemble in ALL:
            assert ensemble(jnp.asarray(logits, jnp.float64), labels).dtype == jnp.float64
    for ensemble in ALL:
        exact = ensemble(jnp.asarray(logits, jnp.bfloat16).astype(jnp.float32), labels)
        np.testing.assert_array_equal(ensemble(jnp.asarray(logits, jnp.bfloat16), labels), exact)


@pytest.mark.parametrize("ensemble", ALL)
def test_members_and_shifts(ensemble):
    """Neither the members' order nor a constant added to one's logits changes the probabilities; one is itself."""
    logits, labels = draw(3)
    expected = jax.nn.softmax(ensemble(logits, labels))
    np.testing.assert_allclose(jax.nn.softmax(ensemble(logits[::-1], labels)), expected, atol=2e-3)
    shifted = logits + np.array([1.0, -3.0, 5.0], np.float32)[:, None, None]
    np.testing.assert_allclose(jax.nn.softmax(ensemble(shifted, labels)), expected, atol=2e-3)
    alone = jax.nn.softmax(ensemble(logits[:1], labels))
    np.testing.assert_allclose(alone, jax.nn.softmax(logits[0]), atol=1e-6)


@pytest.mark.parametrize("ensemble", ALL)
@pytest.mark.parametrize("scale", [1e4, 1e-4, 0.0])
def test_extremes_stay_finite(ensemble, scale):
    logits = scale * RNG.choice([-1.0, 1.0], (3, 6, 4)).astype(np.float32)
    labels = np.arange(6, dtype=np.int32) % 4
    assert np.isfinite(ensemble(logits, labels)).all()
    assert np.isfinite(cross_entropy(np.asarray(ensemble(logits, labels)), labels)).all()


@pytest.mark.parametrize("ensemble", ALL)
def test_excluded_classes(ensemble):
    logits, labels = draw(3)
    other = (labels + 1) % 5
    logits[:, np.arange(7), other] = -np.inf
    found = np.asarray(ensemble(logits, labels))
    assert (found[np.arange(7), other] == -np.inf).all()
    assert np.isfinite(found).sum() == 7 * 4
    keep = np.stack([np.delete(np.arange(5), o) for o in other])
    without = np.take_along_axis(logits, np.broadcast_to(keep, (3, 7, 4)), axis=-1)
    expected = ensemble(without, np.argmax(keep == labels[:, None], axis=1).astype(np.int32))
    np.testing.assert_allclose(
        jax.nn.softmax(np.take_along_axis(found, keep, axis=1)), jax.nn.softmax(expected), atol=2e-3
    )


@pytest.mark.parametrize("ensemble", ALL)
def test_member_that_excludes_the_label_has_weight_zero(ensemble):
    logits, labels = draw(2)
    logits[0, np.arange(7), labels] = -np.inf
    found = jax.nn.softmax(ensemble(logits, labels))
    np.testing.assert_allclose(found, jax.nn.softmax(logits[1]), atol=1e-6)
    assert not np.isnan(ensemble(logits[:1], labels)).any()


@pytest.mark.parametrize("ensemble", ALL)
def test_tokens_and_examples_are_independent(ensemble):
    logits, labels = draw(3, batch=6)
    expected = ensemble(logits, labels)
    np.testing.assert_allclose(ensemble(logits.reshape(3, 2, 3, 5), labels.reshape(2, 3)), expected.reshape(2, 3, 5))
    np.testing.assert_allclose(ensemble(logits[:, :1], labels[:1]), expected[:1], rtol=1e-5, atol=1e-6)


def test_invalid_arguments():
    logits, labels = draw(2)
    with pytest.raises(ValueError, match=r"min_logits, labels: expected integer classes \[7\].*got int32\[6\]"):
        ensembles.min_logits(logits, labels[:6])
    with pytest.raises(ValueError, match=r"best_logits, logits: expected floating-point \[members"):
        ensembles.best_logits(logits.astype(int), labels)
    with pytest.raises(ValueError, match="members"):
        ensembles.combined_logits(logits[:0], labels)
    with pytest.raises(ValueError, match="sweeps: expected a positive number, got 0"):
        ensembles.combined_logits(logits, labels, sweeps=0)
