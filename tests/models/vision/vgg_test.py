"""VGGs; zoo_test.py has the published shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models


def shapes(model, size):
    """Sizes of the maps of all stages, and shape of the logits, for an image of this size."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    logits, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, capture_intermediates=True, mutable=["intermediates"]), variables, image
    )
    stages = [state["intermediates"][f"VGGStage_{number}"]["__call__"][0].shape[1] for number in range(5)]
    return stages, logits.shape


def test_fourth_pooling_is_for_images_of_64_pixels_only():
    model = models.VGG8()
    assert shapes(model, 32) == ([32, 16, 8, 4, 4], (1, 100))
    assert shapes(model, 64) == ([64, 32, 16, 8, 4], (1, 100))
    assert shapes(model, 8) == ([8, 4, 2, 1, 1], (1, 100))


def test_initialization_follows_the_recipe():
    model = models.create("vgg11", num_classes=100)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    assert params["VGGStage_2"].keys() == {"Conv_0", "BatchNorm_0", "Conv_1", "BatchNorm_1"}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        *_, module, kind = names = [part.key for part in path]
        if kind == "kernel":
            deviation = 0.01 if module == "Dense_0" else np.sqrt(2 / (9 * leaf.shape[-1]))
            np.testing.assert_allclose(np.std(leaf), deviation, rtol=0.1, err_msg="/".join(names))
            assert np.abs(leaf).max() > 2.5 * deviation  # not truncated
        else:
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, float(kind == "scale")))


def test_convolution_biases_have_an_effect_in_inference_only():
    """In training, BatchNorm subtracts them, and the running mean follows them."""
    model = models.VGG8(num_classes=3)
    image = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = model.init(jax.random.key(1), image)
    shifted = jax.tree.map(lambda leaf: leaf, variables)
    shifted["params"]["VGGStage_0"]["Conv_0"]["bias"] += 3.0

    def run(variables, train):
        logits, state = model.apply(variables, image, train=train, mutable=["batch_stats"])
        return logits, state["batch_stats"]["VGGStage_0"]["BatchNorm_0"]["mean"]

    assert not np.allclose(run(variables, False)[0], run(shifted, False)[0], atol=1e-2)
    (logits, mean), (others, moved) = run(variables, True), run(shifted, True)
    np.testing.assert_allclose(logits, others, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(moved - mean, 0.3, rtol=1e-4)


def test_invalid_arguments_raise():
    image = jnp.zeros((1, 32, 32, 3))
    with pytest.raises(ValueError, match=r"convolutions: expected 5 numbers of at least 1, got \(1, 2\)"):
        jax.eval_shape(models.VGG(convolutions=(1, 2)).init, jax.random.key(0), image)
    with pytest.raises(ValueError, match=r"convolutions: expected 5 numbers of at least 1, got \(1, 1, 0, 1, 1\)"):
        jax.eval_shape(models.VGG(convolutions=(1, 1, 0, 1, 1)).init, jax.random.key(0), image)
    with pytest.raises(ValueError, match=r"height and width of at least 8, got \[1, 7, 32, 3\]"):
        jax.eval_shape(models.VGG8().init, jax.random.key(0), image[:, :7])
    with pytest.raises(TypeError, match=r"got uint8\[1, 32, 32, 3\]\. Normalize"):
        jax.eval_shape(models.VGG8().init, jax.random.key(0), image.astype(jnp.uint8))
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, channels\]"):
        jax.eval_shape(models.VGG8().init, jax.random.key(0), image[0])
