"""ShuffleNetV1 and its units; zoo_test.py has the published shapes, tests/weights/torch_light_test.py the values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters
from jaxkd.models.vision import _shufflenet_v1


def test_channel_shuffle_distributes_every_group_over_all_groups():
    x = jnp.broadcast_to(jnp.arange(12.0), (2, 3, 5, 12))
    found = _shufflenet_v1.channel_shuffle(x, 3)
    assert found.shape == x.shape
    for row in np.asarray(found).reshape(-1, 12):
        assert row.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    np.testing.assert_array_equal(
        _shufflenet_v1.channel_shuffle(found, 4), x
    )  # the inverse of a shuffle of three groups of four
    np.testing.assert_array_equal(_shufflenet_v1.channel_shuffle(x, 1), x)


@pytest.fixture(scope="module")
def small():
    """A network of two units per stage and two groups, with its variables."""
    module = _shufflenet_v1.ShuffleNetV1(groups=2, num_filters=(48, 96), blocks=(2, 2))
    model = adapters.linen(module, taps=_shufflenet_v1.taps(module))
    batch = {"image": jax.random.normal(jax.random.key(1), (4, 16, 16, 3))}
    return model, jax.jit(model.init)(jax.random.key(0), batch), batch


def test_stage_is_relu_of_its_preactivation(small):
    model, variables, batch = small
    outputs, _ = jax.jit(lambda v, b: model.apply(v, b, key=None, train=False))(variables, batch)
    for number, shape in ((1, (4, 8, 8, 48)), (2, (4, 4, 4, 96))):
        before, after = outputs[f"stage{number}_preact"], outputs[f"stage{number}"]
        assert before.min() < 0 and before.shape == shape
        np.testing.assert_array_equal(np.maximum(before, 0), after)
    np.testing.assert_allclose(outputs["pooled"], outputs["stage2"].mean(axis=(1, 2)), rtol=1e-5)


def test_initialization_is_pytorchs_default(small):
    scaled = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(small[1].params)[0]:
        name = "/".join(part.key for part in path)
        if "BatchNorm" in name:
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, float(path[-1].key == "scale")))
            continue
        assert path[-1].key == "kernel" or name == "Dense_0/bias"
        fan_in = 96 if leaf.ndim == 1 else leaf.size // leaf.shape[-1]
        values = np.asarray(leaf) * np.sqrt(fan_in)
        assert 0.8 < np.abs(values).max() <= 1 + 1e-6, name
        scaled.setdefault(leaf.shape[:-1], []).append(values.ravel())
    for shape, values in scaled.items():
        spread = np.std(np.concatenate(values))
        np.testing.assert_allclose(spread, 1 / np.sqrt(3), rtol=0.12, err_msg=str(shape))
    assert {(3, 3, 1), (1, 1, 3)} < scaled.keys()  # depthwise, and grouped in the first unit


@pytest.mark.slow
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
    init, key, image = _shufflenet_v1.ShuffleNetV1().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    with pytest.raises(TypeError, match=r"got uint8\[1, 32, 32, 3\]\. Normalize"):
        jax.eval_shape(init, key, image.astype(jnp.uint8))
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, channels\], got float32\[32, 32, 3\]"):
        jax.eval_shape(init, key, image[0])
    for blocks in ((4, 8), (4, 8, 1)):
        with pytest.raises(ValueError, match=r"at least 2 for each of the stages \(240, 480, 960\), got \(4, 8"):
            jax.eval_shape(_shufflenet_v1.ShuffleNetV1(blocks=blocks).init, key, image)
    for features in (16, 200, 244):  # fewer than the stem's; quarters of 44 and of 55 are not multiples of 3
        with pytest.raises(
            ValueError, match=rf"more channels than the input's 24, .* quarters of 3 groups, got {features}\."
        ):
            jax.eval_shape(_shufflenet_v1.ShuffleNetV1(num_filters=(features, 480, 960)).init, key, image)
