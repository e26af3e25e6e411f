"""MobileNetV2 and its blocks; zoo_test.py has the published shapes, tests/weights/torch_light_test.py the values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters
from jaxkd.models.vision import _mobilenet_v2

IMAGE = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def abstract(module):
    """Shapes of the variables and of all tapped outputs."""
    model = adapters.linen(module, taps=_mobilenet_v2.taps(module))
    variables = jax.eval_shape(model.init, jax.random.key(0), {"image": IMAGE})
    run = lambda variables, image: model.apply(variables, {"image": image}, key=None, train=False)[0]  # noqa: E731
    return variables, jax.eval_shape(run, variables, IMAGE)


@pytest.mark.parametrize("width, head", [(1.0, 1280), (1.4, 1792), (0.25, 1280)])
def test_head_grows_with_width_but_does_not_shrink(width, head):
    _, outputs = abstract(_mobilenet_v2.MobileNetV2(width=width))
    assert outputs["pooled"].shape == (2, head)
    assert outputs["stage2"].shape == (2, 8, 8, int(32 * width))


@pytest.fixture(scope="module")
def initial():
    module = _mobilenet_v2.MobileNetV2()
    model = adapters.linen(module, taps=_mobilenet_v2.taps(module))
    batch = {"image": jax.random.normal(jax.random.key(1), (4, 32, 32, 3))}
    return model, jax.jit(model.init)(jax.random.key(0), batch), batch


@pytest.mark.slow
def test_bottleneck_output_is_linear(initial):
    model, variables, batch = initial
    outputs, _ = jax.jit(lambda v, b: model.apply(v, b, key=None, train=False))(variables, batch)
    for number in (1, 2, 3, 4):
        assert outputs[f"stage{number}"].min() < 0 < outputs[f"stage{number}"].max()
        np.testing.assert_array_equal(outputs[f"stage{number}_preact"], outputs[f"stage{number}"])
    assert outputs["stem"].min() == 0 and outputs["pooled"].min() >= 0


@pytest.mark.slow
def test_initialization_follows_the_recipe(initial):
    depthwise = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(initial[1].params)[0]:
        name, kind = "/".join(part.key for part in path), path[-1].key
        if "Conv" in name:
            height, width, inputs, features = leaf.shape
            scaled = np.asarray(leaf) * np.sqrt(height * width * features / 2)
            assert kind == "kernel"
            if leaf.size >= 500:  # fewer values do not estimate a standard deviation
                np.testing.assert_allclose(np.std(scaled), 1, rtol=0.15, err_msg=name)
            if inputs == 1:
                depthwise.append(scaled)
        elif "BatchNorm" in name:
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, float(kind == "scale")))
        elif kind == "bias":
            np.testing.assert_array_equal(leaf, np.zeros(100))
        else:
            np.testing.assert_allclose(np.std(leaf), 0.01, rtol=0.02)
    assert len(depthwise) == 17
    np.testing.assert_allclose(np.std(np.concatenate([scaled.ravel() for scaled in depthwise])), 1, rtol=0.03)


@pytest.mark.slow
def test_training_updates_statistics_and_gives_every_parameter_a_gradient(initial):
    model, variables, batch = initial
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
        # The BatchNorms that read a channel cancel the bias of the last BatchNorm of its block.
        cancels = [part.key for part in path[-2:]] == ["BatchNorm_2", "bias"]
        assert (np.abs(leaf).max() > 1e-3) != cancels, path
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), state, variables.state)
    assert min(jax.tree.leaves(moved)) > 0


def test_invalid_arguments_raise():
    init, key, image = _mobilenet_v2.MobileNetV2().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    with pytest.raises(TypeError, match=r"got uint8\[1, 32, 32, 3\]\. Normalize"):
        jax.eval_shape(init, key, image.astype(jnp.uint8))
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, channels\], got float32\[32, 32, 3\]"):
        jax.eval_shape(init, key, image[0])
    with pytest.raises(ValueError, match=r"width: expected at least 0\.0625, which leaves one channel, got 0\.05\."):
        jax.eval_shape(_mobilenet_v2.MobileNetV2(width=0.05).init, key, image)
