"""The multilayer perceptron: logits, taps, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models


def test_logits_and_taps_equal_numpy():
    model = models.MLP(features=(16, 12), num_classes=10)
    image = jax.random.normal(jax.random.key(0), (5, 8, 8, 1))
    variables = model.init(jax.random.key(1), image)
    logits, state = model.apply(variables, image, capture_intermediates=True, mutable=["intermediates"])
    taps = {name: state["intermediates"][name]["__call__"][0] for name in ("Hidden_0", "Hidden_1")}
    assert {name: tap.shape for name, tap in taps.items()} == {"Hidden_0": (5, 16), "Hidden_1": (5, 12)}
    params = jax.tree.map(np.asarray, variables["params"])
    hidden = np.asarray(image).reshape(5, 64)
    for name in ("Hidden_0", "Hidden_1"):
        dense = params[name]["Dense_0"]
        hidden = np.maximum(hidden @ dense["kernel"] + dense["bias"], 0)
        np.testing.assert_allclose(taps[name], hidden, rtol=1e-4, atol=1e-5)
    expected = hidden @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_active_in_training_and_after_the_tap():
    model = models.MLP(features=(64,), num_classes=3, dropout_rate=0.5)
    x = jnp.ones((4, 8))
    variables = model.init(jax.random.key(0), x)

    def run(train, key):
        return model.apply(
            variables, x, train=train, rngs={"dropout": key}, capture_intermediates=True, mutable=["intermediates"]
        )

    (first, one), (second, two) = run(True, jax.random.key(1)), run(True, jax.random.key(2))
    assert not np.allclose(first, second)
    taps = [state["intermediates"]["Hidden_0"]["__call__"][0] for state in (one, two)]
    np.testing.assert_array_equal(*taps)
    np.testing.assert_array_equal(run(False, jax.random.key(1))[0], run(False, jax.random.key(2))[0])


def test_no_hidden_layer_gives_a_linear_classifier():
    variables = models.MLP(features=(), num_classes=3).init(jax.random.key(0), jnp.ones((1, 4)))
    assert jax.tree.map(jnp.shape, variables["params"]) == {"Dense_0": {"kernel": (4, 3), "bias": (3,)}}


def test_rejects_an_image_that_was_not_normalized():
    with pytest.raises(TypeError, match="Normalize images first"):
        models.MLP(features=(4,), num_classes=3).init(jax.random.key(0), jnp.ones((1, 4), jnp.uint8))
