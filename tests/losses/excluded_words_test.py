"""Padding of a vocabulary, -inf in both networks: values and gradients are those without the word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

NAMES = (
    "soft_target_kl",
    "reverse_kl",
    "generalized_jsd",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
    "logit_mse",
)


KEPT = np.array([True, True, False, True, True, False])


@pytest.fixture(scope="module")
def found():
    """Values and gradients of every loss, with the words excluded and without them, from one program each."""
    logits = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)

    def one(name, student, teacher):
        values, pull = jax.vjp(getattr(losses, name), student, teacher)
        return values, pull(jnp.ones_like(values))

    run = jax.jit(lambda student, teacher: {name: one(name, student, teacher) for name in NAMES})
    return run(*np.where(KEPT, logits, -np.inf).astype(np.float32)), run(*logits[..., KEPT])


@pytest.mark.parametrize("name", NAMES)
def test_padding_of_a_vocabulary_changes_nothing(name, found):
    """In the reverse KL, 0 · (−inf + inf) would be NaN in the value, and in the gradients of all words."""
    (values, gradients), (expected, slopes) = (results[name] for results in found)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert (values > 0).all()
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient[:, KEPT], slope, rtol=1e-4, atol=1e-6)
        assert (gradient[:, ~KEPT] == 0).all()
