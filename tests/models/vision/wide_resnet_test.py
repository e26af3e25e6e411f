"""Wide ResNets; zoo_test.py has the published shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.models.vision._wide_resnet import WideBlock


def numpy_conv(x, kernel, stride):
    """Convolution with a padding of size // 2 on every side, in float64, from its definition."""
    size = kernel.shape[0]
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel)


@pytest.mark.parametrize("stride, features", [(1, 3), (1, 4), (2, 4)])
def test_wide_block_equals_its_definition(stride, features):
    """The shortcut is the input, or a convolution of the activated input if the channels change."""
    block = WideBlock(features, stride, train=False)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    variables = block.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    # Statistics and scales other than the identity.
    keys = iter(jax.random.split(jax.random.key(1), 100))
    variables = jax.tree.map(
        lambda leaf: leaf if leaf.ndim == 4 else jax.random.uniform(next(keys), leaf.shape, minval=0.5, maxval=2.0),
        variables,
    )
    params, stats = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), (variables["params"], variables["batch_stats"])
    )

    def activated(y, number):
        name = f"BatchNorm_{number}"
        scaled = (y - stats[name]["mean"]) / np.sqrt(stats[name]["var"] + 1e-5)
        return np.maximum(scaled * params[name]["scale"] + params[name]["bias"], 0)

    first = activated(x, 0)
    y = activated(numpy_conv(first, params["Conv_0"]["kernel"], stride), 1)
    y = numpy_conv(y, params["Conv_1"]["kernel"], 1)
    assert ("Conv_2" in params) == (features != 3)
    shortcut = x if features == 3 else numpy_conv(first, params["Conv_2"]["kernel"], stride)
    found = block.apply(variables, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, y + shortcut, rtol=1e-4, atol=1e-5)


def test_initialization_follows_the_recipe():
    model = models.create("wrn_16_2", num_classes=100)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        *_, module, kind = names = [part.key for part in path]
        if module.startswith("Conv"):
            assert kind == "kernel"
            height, width, _, features = leaf.shape
            deviation = np.sqrt(2 / (height * width * features))
            np.testing.assert_allclose(np.std(leaf), deviation, rtol=0.15, err_msg="/".join(names))
            assert np.abs(leaf).max() > 2.5 * deviation  # not truncated
        elif module.startswith("BatchNorm"):
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, float(kind == "scale")))
        elif kind == "kernel":
            bound = 128**-0.5
            assert 0.99 * bound < np.abs(leaf).max() <= bound
            np.testing.assert_allclose(np.std(leaf), bound / np.sqrt(3), rtol=0.05)
        else:
            np.testing.assert_array_equal(leaf, np.zeros(100))


def test_invalid_arguments_raise():
    image = jnp.zeros((1, 32, 32, 3))
    with pytest.raises(ValueError, match=r"depth: expected 6 n \+ 4 with n >= 1 .*, got 20\."):
        jax.eval_shape(models.WideResNet(depth=20).init, jax.random.key(0), image)
    with pytest.raises(ValueError, match=r"depth: expected 6 n \+ 4"):
        jax.eval_shape(models.WideResNet(depth=4).init, jax.random.key(0), image)
    with pytest.raises(TypeError, match=r"got uint8\[1, 32, 32, 3\]\. Normalize"):
        jax.eval_shape(models.WRN16x1().init, jax.random.key(0), image.astype(jnp.uint8))
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, channels\]"):
        jax.eval_shape(models.WRN16x1().init, jax.random.key(0), image[0])
