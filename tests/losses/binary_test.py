"""Losses of binary and multi-label classifiers: known values, ignored labels, labels of any kind, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses
from tests import references
from tests.loss_table import BY_NAME

BCE, KL = BY_NAME["binary_cross_entropy"], BY_NAME["binary_kl"]


def test_a_binary_kl_is_the_kl_of_two_classes():
    """σ(z) is the softmax of [z, 0]."""
    student, teacher = np.random.default_rng(0).normal(size=(2, 5, 1))
    two = (np.concatenate([x, np.zeros((5, 1))], axis=1) for x in (student, teacher))
    expected = references.soft_target_kl(*two, temperature=2.0)
    np.testing.assert_allclose(losses.binary_kl(student, teacher, temperature=2.0), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.binary_kl(student[:, 0], teacher[:, 0], temperature=2.0), expected, rtol=1e-5)


def test_values_by_hand_of_one_logit():
    """KL(Bernoulli(0.95) ‖ Bernoulli(0.05)) = 0.9 log 19 = 2.65."""
    logit = jnp.log(jnp.array([19.0]))
    np.testing.assert_allclose(losses.binary_kl(-logit, logit, temperature=1.0), 0.9 * np.log(19), rtol=1e-6)
    np.testing.assert_allclose(losses.binary_cross_entropy(logit, jnp.array([0])), -np.log(0.05), rtol=1e-5)


def test_labels_of_any_kind():
    logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    hot = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    expected = optax.sigmoid_binary_cross_entropy(logits, hot).sum(-1)
    for kind in (bool, np.int8, np.uint8, np.int32, np.float16, jnp.bfloat16, np.float32):
        value = losses.binary_cross_entropy(logits, jnp.asarray(hot, kind))
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_ignored_labels():
    """A mask of the labels drops them, whatever they and their logits hold."""
    logits, labels = (np.array(array) for array in BCE.inputs())
    where = np.random.default_rng(1).random(logits.shape) < 0.6
    where[2] = False
    elements = references.binary_cross_entropy(logits.ravel(), labels.ravel()).reshape(logits.shape)
    logits[~where], labels[~where] = np.nan, -1
    value, slope = jax.value_and_grad(lambda z: losses.binary_cross_entropy(z, labels, where=where).sum())(logits)
    np.testing.assert_allclose(value, np.where(where, elements, 0).sum(), rtol=1e-5)
    assert (slope[~where] == 0).all() and (slope[where] != 0).all()
    values = losses.binary_cross_entropy(logits, labels, where=where)
    assert values.shape == (6,) and values[2] == 0
    student, teacher = (np.array(array) for array in KL.inputs())
    elements = references.binary_kl(student.ravel(), teacher.ravel()).reshape(student.shape)
    student[~where] = np.nan
    expected = np.where(where, elements, 0).sum(-1)
    np.testing.assert_allclose(losses.binary_kl(student, teacher, where=where), expected, rtol=1e-5, atol=1e-7)


def test_a_label_that_is_no_probability_is_nan_and_has_no_gradient():
    labels = jnp.array([1, -1, 0, 2])
    value, slope = jax.vjp(lambda z: losses.binary_cross_entropy(z, labels), jnp.zeros(4))
    np.testing.assert_array_equal(jnp.isnan(value), [False, True, False, True])
    assert jnp.isfinite(slope(jnp.ones(4))[0]).all()
    rounded = jnp.array([np.nextafter(np.float32(1), np.float32(2))])  # 0.3 + 0.7 of a mixture
    assert jnp.isfinite(losses.binary_cross_entropy(jnp.zeros(1), rounded)).all()


@pytest.mark.parametrize("offset", [0.0, 5.0, -5.0])
def test_small_divergences_keep_their_digits(offset):
    """Two nearly equal networks: KL ≈ ½ p (1 − p) d² is 1e-9 to 1e-11, next to logarithms with errors of 1e-7."""
    teacher = np.float32(offset + np.random.default_rng(0).normal(size=(50, 1)))
    student = np.float32(teacher + 1e-4)
    value = losses.binary_kl(student, teacher, temperature=1.0)
    np.testing.assert_allclose(value, references.binary_kl(student, teacher, temperature=1.0), rtol=2e-2)
    assert (value > 0).all()


def test_temperature_per_example():
    student, teacher = KL.inputs()
    temperatures = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 1.0])
    value = losses.binary_kl(student, teacher, temperature=temperatures)
    for i, temperature in enumerate(temperatures):
        expected = references.binary_kl(student[i : i + 1], teacher[i : i + 1], temperature=temperature)
        np.testing.assert_allclose(value[i : i + 1], expected, rtol=1e-5)
