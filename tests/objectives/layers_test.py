"""Layers against NumPy and Flax, and errors for mismatched features."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Context
from jaxkd.objectives import combine, hint, layers
from tests.objectives import plain

RNG = np.random.default_rng(0)
MAP = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_conv_equals_numpy_reference(size, bias):
    params = layers.conv_init(jax.random.key(0), size, 2, 3, bias=bias)
    assert ("bias" in params) == bias
    params = jax.tree.map(lambda x: x + 0.5, params)
    np.testing.assert_allclose(layers.conv(params, MAP), plain.conv(plain.f64(params), MAP), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (7, 1), (3, 3, 4, 6), (300, 17)])
def test_kernel_equals_the_initializer_of_jax(shape):
    key = jax.random.key(3)
    want = jax.nn.initializers.lecun_normal()(key, shape, jnp.float32)
    np.testing.assert_array_equal(layers.kernel_init(key, shape)["kernel"], want)
    np.testing.assert_array_equal(jax.jit(lambda key: layers.kernel_init(key, shape)["kernel"])(key), want)


def test_kernels_of_many_shapes_share_compiled_programs():
    """Sizes from 3 to 600 have nine powers of two; a program for each shape made `init` of 200 hints slow."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    shapes = {f"f{i}": jax.ShapeDtypeStruct((2, i), jnp.float32) for i in range(1, 201)}
    target = {"f": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    hints = {name: hint(f"student/{name}", "teacher/f") for name in shapes if name != "f3"}
    params = combine(**hints).init(jax.random.key(0), Context(shapes, target, {}, 0)).params
    assert len(params) == 199
    assert len(compiled) < 30


def test_dense_equals_pointwise_conv():
    params = jax.tree.map(lambda x: x + 0.5, layers.dense_init(jax.random.key(0), 2, 3))
    mapped = layers.dense(params, MAP)
    np.testing.assert_allclose(mapped, plain.dense(plain.f64(params), MAP), rtol=1e-5)
    kernel = params["kernel"].reshape(1, 1, 2, 3)
    np.testing.assert_allclose(mapped, layers.conv({**params, "kernel": kernel}, MAP), rtol=1e-5)
    np.testing.assert_allclose(layers.dense(params, MAP[0, 0]), mapped[0, 0], rtol=1e-5)


def test_layers_compute_in_float32():
    params = layers.conv_init(jax.random.key(0), 3, 2, 3)
    half = jnp.asarray(MAP, jnp.bfloat16)
    found = layers.conv(params, half)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, layers.conv(params, half.astype(jnp.float32)))


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_equals_flax(train):
    module = nn.BatchNorm(momentum=0.9, epsilon=1e-5, use_running_average=not train)
    params, state = layers.batch_norm_init(2)
    params, state = jax.tree.map(lambda x: x + jnp.array([0.5, 0.25]), (params, state))
    want, changed = module.apply({"params": params, "batch_stats": state}, MAP, mutable=["batch_stats"])
    found, new = layers.batch_norm(params, state, MAP, mask=None, axis_name=None, train=train)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new, dict(changed["batch_stats"]))


def test_batch_norm_masking_equals_dropping():
    params, state = layers.batch_norm_init(2)
    keep = np.array([True, False, True])
    found, new = layers.batch_norm(params, state, MAP, mask=keep, axis_name=None, train=True)
    want, kept = layers.batch_norm(params, state, MAP[keep], mask=None, axis_name=None, train=True)
    np.testing.assert_allclose(found[keep], want, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new, kept)


def test_batch_norm_masked_tokens_equal_dropped_ones():
    params, state = layers.batch_norm_init(2)
    keep = RNG.random(MAP.shape[:3]) < 0.5
    found, new = layers.batch_norm(params, state, MAP, mask=keep, axis_name=None, train=True)
    want, kept = layers.batch_norm(params, state, MAP[keep], mask=None, axis_name=None, train=True)
    np.testing.assert_allclose(found[keep], want, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new, kept)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((2, 4), (2, 4, 4, 4)), ((2, 4), (3, 4)), ((2, 5, 4), (2, 6, 4)), ((2, 4, 4, 3), (3, 4, 4, 3)), ((2,), (2,))],
)
def test_pool_to_match_of_mismatched_features_raises(student, teacher):
    with pytest.raises(ValueError, match=r"vid: expected two features that differ in channels.* for the teacher"):
        layers.pool_to_match("vid", jnp.ones(student), jnp.ones(teacher))


def test_pool_to_match_pools_the_larger_map_on_each_axis():
    first, second = layers.pool_to_match("f", jnp.asarray(MAP), jnp.ones((3, 2, 10, 7)))
    assert (first.shape, second.shape) == ((3, 2, 5, 2), (3, 2, 5, 7))
    np.testing.assert_allclose(first, plain.pool(MAP, 2, 5), rtol=1e-5, atol=1e-6)
