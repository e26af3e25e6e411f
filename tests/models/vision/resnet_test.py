"""ResNets of basic blocks; zoo_test.py has the published shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters, models
from jaxkd._core import batch_norm
from jaxkd.models.vision._resnet import BasicBlock
from jaxkd.types import DATA_AXIS


def abstract(name, **options):
    model = models.create(name, num_classes=100, **options)
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return model, variables, image


def tapped(name, **options):
    """Shapes of all submodules' outputs, by path."""
    model, variables, image = abstract(name, **options)
    _, state = jax.eval_shape(
        lambda variables, image: model.apply(variables, image, capture_intermediates=True, mutable=["intermediates"]),
        variables,
        image,
    )
    flat = jax.tree_util.tree_flatten_with_path(state["intermediates"])[0]
    return {"/".join(part.key for part in path[:-2]): leaf for path, leaf in flat}


@pytest.fixture(scope="module")
def small():
    """A resnet8 and all its outputs."""
    model = models.create("resnet8", num_classes=100)
    image = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), image)
    run = jax.jit(lambda variables, image: model.apply(variables, image, capture_intermediates=True, mutable=True))
    logits, state = run(variables, image)
    return model, variables, image, logits, state["intermediates"]


def output(intermediates, path):
    for part in path.split("/"):
        intermediates = intermediates[part]
    return intermediates["__call__"][0]


def test_stage_is_relu_of_its_preactivation(small):
    *_, logits, intermediates = small
    taps = models.taps("resnet8")
    for number in (1, 2, 3):
        before, after = (output(intermediates, taps[f"stage{number}{kind}"]) for kind in ("_preact", ""))
        assert before.min() < 0
        np.testing.assert_array_equal(np.maximum(before, 0), after)
    assert output(intermediates, taps["stem"]).min() == 0
    pooled = output(intermediates, taps["pooled"])
    np.testing.assert_allclose(pooled, output(intermediates, taps["stage3"]).mean(axis=(1, 2)), rtol=1e-5)
    assert logits.shape == (2, 100)


def test_initialization_follows_the_recipe(small):
    params = small[1]["params"]
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = "/".join(part.key for part in path)
        if "Conv" in name:
            height, width, _, features = leaf.shape
            np.testing.assert_allclose(np.std(leaf), np.sqrt(2 / (height * width * features)), rtol=0.15, err_msg=name)
            assert path[-1].key == "kernel"
        elif "BatchNorm" in name:
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, float(path[-1].key == "scale")))
        else:
            assert 0.9 / 8 < np.abs(leaf).max() <= 1 / 8, name
            np.testing.assert_allclose(np.std(leaf), 1 / 8 / np.sqrt(3), rtol=0.15)


def test_training_updates_running_statistics(small):
    model, variables, image, *_ = small
    _, state = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, image)
    first = state["batch_stats"]["ResNetStem_0"]["BatchNorm_0"]
    assert not np.allclose(first["mean"], 0)
    stem = variables["params"]["ResNetStem_0"]["Conv_0"]["kernel"]
    raw = jax.lax.conv_general_dilated(
        image, stem, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(first["mean"], 0.1 * raw.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(first["var"], 0.9 + 0.1 * raw.var(axis=(0, 1, 2)), rtol=1e-3)


def test_split_batch_is_normalized_like_the_whole_batch():
    block = adapters.linen(BasicBlock(3, 1, train=True), outputs=lambda x: {"map": x}, flag=lambda train: {})
    image = jax.random.normal(jax.random.key(0), (8, 4, 4, 3)) * jnp.arange(1.0, 9.0)[:, None, None, None]
    variables = block.init(jax.random.key(1), {"image": image})

    def forward(image):
        with batch_norm.replicas(1):
            return block.apply(variables, {"image": image}, key=None, train=True)[0]["map"]

    found = jax.vmap(forward, axis_name=DATA_AXIS)(image.reshape(4, 2, 4, 4, 3))
    np.testing.assert_allclose(found.reshape(8, 4, 4, 3), forward(image), rtol=1e-4, atol=1e-5)


def numpy_conv(x, kernel, stride):
    """Convolution with a padding of size // 2 on every side, in float64, from its definition."""
    size = kernel.shape[0]
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel)


@pytest.mark.parametrize("stride,features", [(1, 3), (1, 4), (2, 4)])
def test_basic_block_equals_its_definition(stride, features):
    block = BasicBlock(features, stride, train=False)
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

    def normalize(y, number):
        name = f"BatchNorm_{number}"
        scaled = (y - stats[name]["mean"]) / np.sqrt(stats[name]["var"] + 1e-5)
        return scaled * params[name]["scale"] + params[name]["bias"]

    y = np.maximum(normalize(numpy_conv(x, params["Conv_0"]["kernel"], stride), 0), 0)
    y = normalize(numpy_conv(y, params["Conv_1"]["kernel"], 1), 1)
    shortcut = x if (stride, features) == (1, 3) else normalize(numpy_conv(x, params["Conv_2"]["kernel"], stride), 2)
    found = block.apply(variables, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, np.maximum(y + shortcut, 0), rtol=1e-4, atol=1e-5)


def test_computes_in_bfloat16_and_keeps_parameters_in_float32(small):
    _, variables, image, logits, _ = small
    outputs = tapped("resnet8", dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in outputs.values()} == {"bfloat16"}
    _, abstract_variables, _ = abstract("resnet8", dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(abstract_variables)} == {"float32"}
    # Not under jit: on a CPU, jaxlib 0.12.0 fuses this bfloat16 forward pass (and no float32 one) into NaN, unless
    # XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= turns that fusion off.
    found = models.create("resnet8", num_classes=100, dtype=jnp.bfloat16).apply(variables, image)
    np.testing.assert_allclose(np.asarray(found, np.float32), logits, atol=0.1 * float(np.abs(logits).max()))


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match=r"depth: expected 6 n \+ 2"):
        jax.eval_shape(models.ResNet(depth=9).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(TypeError, match=r"got uint8\[1, 32, 32, 3\]\. Normalize"):
        jax.eval_shape(models.ResNet8().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.uint8))
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, channels\]"):
        jax.eval_shape(models.ResNet8().init, jax.random.key(0), jnp.zeros((32, 32, 3)))
