"""The CPU's grouped convolution against XLA's, and against sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.models import _layers

CASES = {
    "pointwise, three groups": ((1, 1, 4, 18), (1, 1), 0, 3),
    "pointwise, depthwise": ((1, 1, 1, 12), (1, 1), 0, 12),
    "depthwise": ((3, 3, 1, 12), (1, 1), 1, 12),
    "depthwise, stride 2": ((3, 3, 1, 12), (2, 2), 1, 12),
    "depthwise, other strides, no padding": ((3, 2, 1, 12), (2, 3), 0, 12),
    "left to XLA: a multiplier": ((3, 3, 1, 24), (1, 1), 1, 12),
    "left to XLA: two groups of 3 by 3": ((3, 3, 6, 8), (2, 2), 1, 2),
    "left to XLA: pointwise with a stride": ((1, 1, 4, 18), (2, 2), 0, 3),
}


def xla(x, kernel, strides, padding, groups):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, feature_group_count=groups, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("case", CASES)
def test_grouped_convolution_and_its_gradients_equal_xlas(case):
    shape, strides, padding, groups = CASES[case]
    padding = ((padding, padding),) * 2
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 7, 6, 12)), jax.random.normal(keys[1], shape)
    expected, expected_vjp = jax.vjp(lambda x, k: xla(x, k, strides, padding, groups), x, kernel)
    found, found_vjp = jax.vjp(
        lambda x, k: _layers.grouped_convolution(x, k, strides, padding, feature_group_count=groups), x, kernel
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    cotangent = jax.random.normal(keys[2], expected.shape)
    for gradient, reference in zip(found_vjp(cotangent), expected_vjp(cotangent), strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=1e-5, atol=1e-4)


def test_depthwise_convolution_equals_sums_by_hand():
    x = np.arange(2 * 4 * 4 * 3, dtype=np.float64).reshape(2, 4, 4, 3)
    kernel = np.arange(27, dtype=np.float64).reshape(3, 3, 1, 3) - 13
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((2, 2, 2, 3))
    for row in range(2):
        for column in range(2):
            window = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected[:, row, column] = (window * kernel[:, :, 0]).sum(axis=(1, 2))
    found = _layers.grouped_convolution(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(kernel, jnp.float32),
        (2, 2),
        ((1, 1), (1, 1)),
        feature_group_count=3,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("shape, size", [((1, 1, 64, 3), 0), ((3, 3, 1, 192), 1)])
def test_bfloat16_accumulates_in_float32(shape, size):
    groups = 192 // shape[2]
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 192)).astype(jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), shape).astype(jnp.bfloat16)
    padding = ((size, size),) * 2
    found = _layers.grouped_convolution(x, kernel, (1, 1), padding, feature_group_count=groups)
    exact = xla(x.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1), padding, groups)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_ungrouped_convolution_is_xlas():
    assert _layers.conv(8, 3, 1, None).conv_general_dilated is None
    assert _layers.conv(8, 3, 1, None, groups=8).conv_general_dilated is _layers.grouped_convolution
