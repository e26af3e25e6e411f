"""ShuffleNetV2 and its units; zoo_test.py has the published shapes, tests/weights/torch_light_test.py the values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters
from jaxkd.models.vision import _shufflenet_v2
from jaxkd.models.vision._shufflenet_v1 import channel_shuffle

IMAGE = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def abstract(module):
    """Shapes of the variables and of all tapped outputs."""
    model = adapters.linen(module, taps=_shufflenet_v2.taps(module))
    variables = jax.eval_shape(model.init, jax.random.key(0), {"image": IMAGE})
    run = lambda variables, image: model.apply(variables, {"image": image}, key=None, train=False)[0]  # noqa: E731
    return variables, jax.eval_shape(run, variables, IMAGE)


def test_margin_norms_are_empty():
    """Each BatchNorm covers half of the channels only."""
    variables, outputs = abstract(_shufflenet_v2.ShuffleNetV2())
    for number in (1, 2, 3):
        stage = variables.params[f"ShuffleNetV2Stage_{number - 1}"]
        last = stage[f"BasicUnit_{len(stage) - 2}"]["BatchNorm_2"]["scale"]
        assert 2 * last.shape[0] == outputs[f"stage{number}_preact"].shape[-1]
    assert _shufflenet_v2.margin_norms(_shufflenet_v2.ShuffleNetV2()) == {}


@pytest.fixture(scope="module")
def small():
    """A network of two and three units per stage, with its variables."""
    module = _shufflenet_v2.ShuffleNetV2(num_filters=(16, 32, 48), blocks=(2, 3))
    model = adapters.linen(module, taps=_shufflenet_v2.taps(module))
    batch = {"image": jax.random.normal(jax.random.key(1), (4, 16, 16, 3))}
    return model, jax.jit(model.init)(jax.random.key(0), batch), batch


def test_stage_is_shuffled_relu_of_its_preactivation(small):
    model, variables, batch = small
    outputs, _ = jax.jit(lambda v, b: model.apply(v, b, key=None, train=False))(variables, batch)
    for number, shape in ((1, (4, 8, 8, 16)), (2, (4, 4, 4, 32))):
        before, after = outputs[f"stage{number}_preact"], outputs[f"stage{number}"]
        kept, own = jnp.split(before, 2, axis=-1)
        assert before.shape == shape and kept.min() >= 0 and own.min() < 0
        np.testing.assert_array_equal(channel_shuffle(jnp.maximum(before, 0), 2), after)
    assert outputs["pooled"].shape == (4, 48)


def test_unit_passes_half_of_the_channels_unchanged():
    unit = _shufflenet_v2.BasicUnit(train=False)
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 8))
    found = unit.apply(unit.init(jax.random.key(1), x), x)
    np.testing.assert_array_equal(found[..., ::2], x[..., :4])
    assert found[..., 1::2].min() == 0


def test_initialization_is_pytorchs_default(small):
    scaled = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(small[1].params)[0]:
        name = "/".join(part.key for part in path)
        if "BatchNorm" in name:
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, float(path[-1].key == "scale")))
            continue
        assert path[-1].key == "kernel" or name == "Dense_0/bias"
        fan_in = 48 if leaf.ndim == 1 else leaf.size // leaf.shape[-1]
        values = np.asarray(leaf) * np.sqrt(fan_in)
        assert 0.8 < np.abs(values).max() <= 1 + 1e-6, name
        scaled.setdefault(leaf.shape[:-1], []).append(values.ravel())
    for shape, values in scaled.items():
        spread = np.std(np.concatenate(values))
        np.testing.assert_allclose(spread, 1 / np.sqrt(3), rtol=0.12, err_msg=str(shape))
    assert (3, 3, 1) in scaled


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
        # What the BatchNorm behind a depthwise convolution adds to a channel, the next one subtracts again.
        depthwise = {"BasicUnit": (1,), "DownUnit": (0, 3)}.get(path[-3].key[:-2] if len(path) > 2 else "", ())
        cancels = [part.key for part in path[-2:]] in [[f"BatchNorm_{number}", "bias"] for number in depthwise]
        assert (np.abs(leaf).max() > 1e-3) != cancels, path
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), state, variables.state)
    assert min(jax.tree.leaves(moved)) > 0


def test_invalid_arguments_raise():
    init, key, image = _shufflenet_v2.ShuffleNetV2().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    with pytest.raises(TypeError, match=r"got uint8\[1, 32, 32, 3\]\. Normalize"):
        jax.eval_shape(init, key, image.astype(jnp.uint8))
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, channels\], got float32\[32, 32, 3\]"):
        jax.eval_shape(init, key, image[0])
    for blocks in ((4, 8), (4, 8, 1)):
        with pytest.raises(ValueError, match=r"at least 2 for each of the stages \(116, 232, 464\), got \(4, 8"):
            jax.eval_shape(_shufflenet_v2.ShuffleNetV2(blocks=blocks).init, key, image)
    with pytest.raises(ValueError, match=r"even numbers of channels for the stages, got \(116, 231, 464\)"):
        jax.eval_shape(_shufflenet_v2.ShuffleNetV2(num_filters=(116, 231, 464, 1024)).init, key, image)
