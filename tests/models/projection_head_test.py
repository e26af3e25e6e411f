"""The projection head: cosines of a perceptron's outputs with prototypes."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import models


def test_outputs_equal_numpy():
    head = models.ProjectionHead(prototypes=7, hidden_features=6, bottleneck=3)
    x = jax.random.normal(jax.random.key(0), (4, 5))
    variables = head.init(jax.random.key(1), x)
    params = jax.tree.map(np.float64, variables["params"])
    h = np.float64(x)
    for name in ("Dense_0", "Dense_1", "Dense_2"):
        h = h @ params[name]["kernel"] + params[name]["bias"]
        if name != "Dense_2":
            h = h * np.vectorize(lambda u: 0.5 * (1 + math.erf(u / math.sqrt(2))))(h)
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    w = params["prototypes"] / np.linalg.norm(params["prototypes"], axis=0)
    np.testing.assert_allclose(jax.jit(head.apply)(variables, x), h @ w, rtol=1e-3, atol=1e-5)


def test_zero_features_have_finite_gradients():
    head = models.ProjectionHead(prototypes=7, hidden_features=6, bottleneck=3)
    variables = jax.tree.map(jnp.zeros_like, head.init(jax.random.key(1), jnp.zeros((1, 5))))
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(head.apply(v, jnp.ones((2, 5))))))(variables)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
