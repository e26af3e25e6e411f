"""A two-layer student and teacher as plain functions that compile quickly, and assertions on trees."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

import jaxkd

CLASSES = 3
DATA = 64
"""Number of examples in the data set, above every ``index``."""


def _init(channels: int):
    def init(key, image):
        first, second = jax.random.split(key)
        return {
            "first": 0.5 * jax.random.normal(first, (image.shape[-1], channels)),
            "second": 0.5 * jax.random.normal(second, (channels, CLASSES)),
        }

    return init


def _apply(pool: int):
    def apply(params, image):
        features = jnp.tanh(image @ params["first"])
        batch, height, width, channels = features.shape
        features = features.reshape(batch, height // pool, pool, width // pool, pool, channels).mean(axis=(2, 4))
        vector = features.mean(axis=(1, 2))
        return {"logits": vector @ params["second"], "map": features, "vector": vector}

    return apply


student = jaxkd.adapters.plain(_init(4), _apply(pool=1))
"""Outputs ``map`` [batch, 4, 4, 4] and ``vector`` [batch, 4]."""

teacher_model = jaxkd.adapters.plain(_init(5), _apply(pool=2))
"""Outputs ``map`` [batch, 2, 2, 5] and ``vector`` [batch, 5]."""


def batch(size: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(size, 4, 4, 2)).astype(np.float32),
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
        "index": rng.permutation(DATA)[:size].astype(np.int32),
    }


def teacher_variables() -> jaxkd.Variables:
    return teacher_model.init(jax.random.key(7), batch(1))


def teacher() -> jaxkd.Teacher:
    return jaxkd.teachers.frozen(teacher_model, teacher_variables())


def numbers(metrics) -> dict[str, float]:
    return jaxkd.metrics.compute(metrics)


def assert_close(actual, expected, *, rtol=2e-5, atol=2e-6):
    """Asserts that trees of arrays and PRNG keys agree to float rounding."""
    chex.assert_trees_all_equal_structs(actual, expected)
    actual, expected = (jax.tree.map(_plain, tree) for tree in (actual, expected))
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=atol)


def assert_equal(actual, expected):
    """Asserts that trees of arrays and PRNG keys agree bit for bit."""
    actual, expected = (jax.tree.map(_plain, tree) for tree in (actual, expected))
    chex.assert_trees_all_equal(actual, expected)


def _plain(x):
    x = jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return np.asarray(x)
