"""Padding of a vocabulary, -inf in both networks: values and gradients are those without the word."""

import jax
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


@pytest.mark.parametrize("name", NAMES)
def test_padding_of_a_vocabulary_changes_nothing(name):
    """In the reverse KL, 0 · (−inf + inf) would be NaN in the value, and in the gradients of all words."""
    student, teacher = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    kept = np.array([True, True, False, True, True, False])
    padded = [np.where(kept, logits, -np.inf).astype(np.float32) for logits in (student, teacher)]

    def total(student, teacher):
        values = getattr(losses, name)(student, teacher)
        return values.sum(), values

    both = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (_, values), gradients = both(*padded)
    (_, expected), slopes = both(student[:, kept], teacher[:, kept])
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert (values > 0).all()
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient[:, kept], slope, rtol=1e-4, atol=1e-6)
        assert (gradient[:, ~kept] == 0).all()
