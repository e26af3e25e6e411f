"""ResNet50 and its blocks; zoo_test.py has the published shapes, tests/weights/torch_light_test.py the values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters
from jaxkd.models.vision import _resnet50


@pytest.fixture(scope="module")
def small():
    """A shallow, narrow network with its variables."""
    module = _resnet50.BottleneckResNet(blocks=(1, 2, 1), num_filters=(8, 16, 32))
    model = adapters.linen(module, taps=_resnet50.taps(module))
    batch = {"image": jax.random.normal(jax.random.key(1), (2, 16, 16, 3))}
    return model, jax.jit(model.init)(jax.random.key(0), batch), batch


@pytest.mark.slow
def test_stage_is_relu_of_its_preactivation(small):
    model, variables, batch = small
    outputs, _ = jax.jit(lambda v, b: model.apply(v, b, key=None, train=False))(variables, batch)
    for number, size in ((1, 16), (2, 8), (3, 4)):
        before, after = outputs[f"stage{number}_preact"], outputs[f"stage{number}"]
        assert before.min() < 0 and before.shape[1:3] == (size, size)
        np.testing.assert_array_equal(np.maximum(before, 0), after)
    np.testing.assert_allclose(outputs["pooled"], outputs["stage3"].mean(axis=(1, 2)), rtol=1e-5)


def test_initialization_follows_the_recipe(small):
    scaled = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(small[1].params)[0]:
        name = "/".join(part.key for part in path)
        if "Conv" in name:
            height, width, _, features = leaf.shape
            assert path[-1].key == "kernel"
            values = np.asarray(leaf) * np.sqrt(height * width * features / 2)
            scaled.setdefault(features, []).append(values.ravel())
        elif "BatchNorm" in name:
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, float(path[-1].key == "scale")))
        else:
            bound = 1 / np.sqrt(128)
            assert 0.9 * bound < np.abs(leaf).max() <= bound, name
            np.testing.assert_allclose(np.std(leaf), bound / np.sqrt(3), rtol=0.15)
    for features, values in scaled.items():
        np.testing.assert_allclose(np.std(np.concatenate(values)), 1, rtol=0.12, err_msg=str(features))
    assert max(np.abs(values).max() for group in scaled.values() for values in group) > 2.5  # normal, not uniform


def test_training_updates_statistics_and_gives_every_parameter_a_gradient(small):
    model, variables, batch = small
    # BatchNorms other than the identity, since an identity after a ReLU cancels some of the scales before it.
    keys = iter(jax.random.split(jax.random.key(3), 1000))
    params = jax.tree.map(
        lambda leaf: leaf + jax.random.uniform(next(keys), leaf.shape) if leaf.ndim == 1 else leaf, variables.params
    )

    def loss(params):
        outputs, state = model.apply(variables._replace(params=params), batch, key=jax.random.key(2), train=True)
        return jnp.sum(jnp.sin(outputs["logits"])), state

    gradients, state = jax.jit(jax.grad(loss, has_aux=True))(params)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradients)[0]:
        assert np.abs(leaf).max() > 1e-3, path
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), state, variables.state)
    assert min(jax.tree.leaves(moved)) > 0


def test_invalid_arguments_raise():
    init, key, image = _resnet50.ResNet50().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    with pytest.raises(TypeError, match=r"got uint8\[1, 32, 32, 3\]\. Normalize"):
        jax.eval_shape(init, key, image.astype(jnp.uint8))
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, channels\], got float32\[32, 32, 3\]"):
        jax.eval_shape(init, key, image[0])
    for blocks in ((3, 4, 6), (3, 4, 6, 0)):
        with pytest.raises(ValueError, match=r"at least 1 for each of num_filters=\(64, 128, 256, 512\), got \(3, 4"):
            jax.eval_shape(_resnet50.BottleneckResNet(blocks=blocks).init, key, image)
