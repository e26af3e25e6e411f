"""Caches of sampled classes: unbiased in value and gradient, and equal however they are batched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.cache import codecs
from jaxkd.cache.codecs._codec import example_keys

ROW = np.array([2.0, -np.inf, 0.5, -3.0, 1.0, -6.0], np.float32)
P = np.exp(ROW.astype(np.float64)) / np.exp(ROW.astype(np.float64)).sum()


def keys(count, view=0):
    return example_keys(jnp.arange(count), jnp.full(count, view))


@pytest.mark.parametrize("power", [1.0, 0.5, 1.5])
def test_the_expected_target_and_the_expected_gradient_are_those_of_the_whole_distribution(power):
    """20,000 independent caches of one row; each mean is within five standard errors, and the errors are small."""
    count, codec = 20_000, codecs.sampled(3, power=power)
    kept = jax.jit(codec.encode)(jnp.broadcast_to(ROW, (count, 6)), keys(count))
    found = jax.jit(lambda kept: codec.decode(kept, (6,)))(kept)
    student = jnp.array([0.3, -1.0, 0.2, 0.0, 1.5, -0.4])
    gradient = jax.jit(jax.vmap(jax.grad(losses.sparse_cross_entropy), in_axes=(None, 0, 0)))(
        student, found["/weights"], found["/indices"]
    )
    value = losses.sparse_cross_entropy(jnp.broadcast_to(student, (count, 6)), found["/weights"], found["/indices"])
    log_q, some = np.asarray(jax.nn.log_softmax(student), np.float64), P > 0
    proposal = P[some] ** power / (P[some] ** power).sum()
    # By the formula: a draw adds p/q to its class, and p/q · (−log q) to the value.
    ratio, costs = P[some] / proposal, -log_q[some]
    deviation = np.zeros(6)
    deviation[some] = np.sqrt(P[some] * (ratio - P[some]))
    of_value = np.sqrt((P[some] * ratio * costs**2).sum() - (P[some] * costs).sum() ** 2)
    for samples, expected, spread in [
        (found["/probs"], P, deviation),
        # Weights that do not sum to 1 scale the student's own part of the gradient.
        (gradient, np.exp(log_q) - P, deviation + np.sqrt((P[some] * ratio).sum() - 1)),
        (value, (P[some] * costs).sum(), of_value),
    ]:
        allowed = 5 * spread / np.sqrt(3 * count) + 1e-5
        assert (np.abs(np.asarray(samples, np.float64).mean(0) - expected) <= allowed).all()
        assert np.max(allowed) < 0.05
    assert (np.asarray(found["/probs"])[:, 1] == 0).all(), "an excluded class is never drawn"


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_a_weight_is_the_ratio_of_target_and_proposal(power):
    codec = codecs.sampled(64, power=power)
    found = jax.jit(lambda x: codec.decode(codec.encode(x, keys(1)), (6,)))(ROW[None])
    q = P**power / (P**power).sum()
    indices = np.asarray(found["/indices"])[0]
    assert set(indices) >= {0, 2, 4}
    np.testing.assert_allclose(found["/weights"][0], P[indices] / (64 * q[indices]), rtol=1e-3)
    assert (np.diff(indices) >= 0).all()


def test_draws_depend_on_seed_example_view_and_position_alone():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 50)), jnp.float32)
    codec = codecs.sampled(8)
    encode = jax.jit(codec.encode)
    whole, order = encode(x, keys(4))["packed"], np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(encode(x[order], keys(4)[order])["packed"], whole[order])
    np.testing.assert_array_equal(encode(x[:2, :3], keys(2))["packed"], whole[:2, :3])
    same = jnp.broadcast_to(x[:1, :1], x.shape)
    drawn = np.asarray(encode(same, keys(4))["packed"])
    assert len(np.unique(drawn.reshape(24, -1), axis=0)) > 20, "rows draw independently"
    for other in (jax.jit(codecs.sampled(8, seed=1).encode)(x, keys(4)), encode(x, keys(4, view=1))):
        assert (other["packed"] != whole).any()


def test_rare_classes_of_a_large_vocabulary_are_drawn_as_often_as_they_should():
    """Half of the mass is spread over 100,000 classes of 5e-6 each."""
    x = jnp.concatenate([jnp.array([np.log(1e5)], jnp.float32), jnp.zeros(100_000)])[None]
    codec = codecs.sampled(4096)
    found = jax.jit(lambda x: codec.decode(codec.encode(x, keys(1)), (100_001,)))(x)
    indices = np.asarray(found["/indices"])[0]
    assert abs((indices == 0).mean() - 0.5) < 5 * 0.5 / 64
    rare = indices[indices > 0]
    assert abs(rare.mean() - 50_000) < 5 * 100_000 / np.sqrt(12 * len(rare))
    np.testing.assert_allclose(found["/weights"], 1 / 4096)


def test_errors_name_what_was_expected():
    with pytest.raises(ValueError, match="sampled: expected draws of at least 1, and at most 65536, got 0"):
        codecs.sampled(0)
    with pytest.raises(ValueError, match="sampled: expected a positive power, got -1"):
        codecs.sampled(3, power=-1)
    with pytest.raises(ValueError, match="sampled: expected a key for each of 2 examples, got none"):
        codecs.sampled(3).encode(jnp.zeros((2, 4)))
    assert codecs.sampled(1).storable(jnp.array([[0.0, -jnp.inf], [-jnp.inf, -jnp.inf]])).tolist() == [True, False]
