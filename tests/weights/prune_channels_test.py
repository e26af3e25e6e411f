"""Channels of any network: which arrays share them, and a network without its dead ones."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Variables, adapters, models, weights

IMAGES = {"image": jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)}


def shapes(module):
    model = adapters.linen(module)
    return model, jax.eval_shape(model.init, jax.random.key(0), IMAGES)


def arrays(group, kind):
    return sorted(name for name, _ in group.axes if name.endswith(kind))


# --- groups ----------------------------------------------------------------------------------------------------------


def test_a_residual_stream_is_one_group_and_a_block_another():
    groups = weights.channel_groups(*shapes(models.ResNet8(num_classes=10)), IMAGES)
    assert [group.size for group in groups.values()] == [16, 16, 32, 32, 64, 64]
    stream, block, *_ = groups.values()
    assert arrays(stream, "kernel") == [
        "params/ResNetStage_0/BasicBlock_0/Conv_0/kernel",
        "params/ResNetStage_0/BasicBlock_0/Conv_1/kernel",
        "params/ResNetStage_1/BasicBlock_0/Conv_0/kernel",
        "params/ResNetStage_1/BasicBlock_0/Conv_2/kernel",
        "params/ResNetStem_0/Conv_0/kernel",
    ]
    assert stream.filters == (
        ("params/ResNetStem_0/Conv_0/kernel", 3),
        ("params/ResNetStage_0/BasicBlock_0/Conv_1/kernel", 3),
    )
    assert arrays(block, "") == [
        "batch_stats/ResNetStage_0/BasicBlock_0/BatchNorm_0/mean",
        "batch_stats/ResNetStage_0/BasicBlock_0/BatchNorm_0/var",
        "params/ResNetStage_0/BasicBlock_0/BatchNorm_0/bias",
        "params/ResNetStage_0/BasicBlock_0/BatchNorm_0/scale",
        "params/ResNetStage_0/BasicBlock_0/Conv_0/kernel",
        "params/ResNetStage_0/BasicBlock_0/Conv_1/kernel",
    ]
    assert ("params/Dense_0/kernel", 0) in list(groups.values())[-1].axes


class Mixed(nn.Module):
    """Channels that a reshape, a concatenation, a softmax over them or a loop mixes, and some that are free."""

    @nn.compact
    def __call__(self, x, train=False):
        heads = nn.Dense(12, name="heads")(x)
        heads = jnp.mean(heads.reshape(-1, 3, 4), axis=1)
        joined = jnp.concatenate([nn.Dense(5, name="left")(x), nn.Dense(4, name="right")(heads)], axis=-1)
        rows = jax.lax.map(lambda row: row * 2, nn.Dense(6, name="loop")(joined))
        ordered = jnp.sort(nn.Dense(7, name="sorted")(rows), axis=-1)
        free = nn.gelu(nn.Dense(8, name="free")(ordered))
        normed = nn.LayerNorm(name="norm")(free)
        return nn.Dense(3, name="out")(jax.checkpoint(jnp.tanh)(normed))


def test_channels_that_are_not_followed_are_in_no_group():
    model = adapters.linen(Mixed(), inputs="x")
    batch = {"x": jnp.ones((2, 5))}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    groups = weights.channel_groups(model, variables, batch)
    assert list(groups) == ["params/free/kernel"]
    assert {name for name, _ in groups["params/free/kernel"].axes} == {
        "params/free/kernel",
        "params/free/bias",
        "params/norm/scale",
        "params/norm/bias",
        "params/out/kernel",
    }


def test_depthwise_kernels_belong_to_their_channels():
    groups = weights.channel_groups(*shapes(models.MobileNetV2(num_classes=10)), IMAGES)
    group = groups["params/MobileNetV2Stage_0/InvertedResidual_0/Conv_0/kernel"]
    block = "params/MobileNetV2Stage_0/InvertedResidual_0"
    assert {(f"{block}/Conv_0/kernel", 3), (f"{block}/Conv_1/kernel", 3), (f"{block}/Conv_2/kernel", 2)} < set(
        group.axes
    )


def test_another_output_may_be_the_fixed_one():
    model = adapters.plain(
        lambda key, x: {"up": jnp.ones((3, 5)), "down": jnp.ones((5, 2))},
        lambda w, x: {"logits": x @ w["up"] @ w["down"], "up": x @ w["up"]},
        inputs="x",
    )
    batch = {"x": jnp.ones((4, 3))}
    variables = model.init(jax.random.key(0), batch)
    assert list(weights.channel_groups(model, variables, batch)) == ["params/up"]
    assert list(weights.channel_groups(model, variables, batch, output="up")) == ["params/down"]
    with pytest.raises(ValueError, match="channel_groups, output of the model 'other': there is no such name"):
        weights.channel_groups(model, variables, batch, output="other")


# --- pruning ---------------------------------------------------------------------------------------------------------

NETWORKS = {
    "resnet": (
        models.ResNet(8, (4, 6, 8, 8), num_classes=5),
        models.ResNet(8, (2, 3, 4, 4), num_classes=5),
        (2, 8, 8, 3),
    ),
    "mlp": (models.MLP((6, 4), num_classes=5), models.MLP((3, 2), num_classes=5), (2, 4)),
}


def drawn(like):
    """Returns random variables, with positive variances."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        values = rng.normal(size=x.shape).astype(np.float32)
        return np.abs(values) + 0.5 if str(path[-1].key) in ("var", "scale") else values

    return jax.tree_util.tree_map_with_path(draw, like)


def killed(variables, groups):
    """Sets every second channel to zero: its filters, biases and means."""
    flat = weights.flatten(variables)
    for group in groups.values():
        for name, axis in group.axes:
            if (name, axis) in group.filters or name.endswith(("bias", "mean")):
                index = [slice(None)] * flat[name].ndim
                index[axis] = slice(1, None, 2)
                flat[name][tuple(index)] = 0
    return variables


@pytest.mark.parametrize("name", ["mlp", pytest.param("resnet", marks=pytest.mark.slow)])
def test_pruning_dead_channels_changes_nothing(name):
    large, small, shape = NETWORKS[name]
    batch = {"image": np.random.default_rng(1).normal(size=shape).astype(np.float32)}
    model, narrow = adapters.linen(large), adapters.linen(small)
    like = jax.eval_shape(model.init, jax.random.key(0), batch)
    groups = weights.channel_groups(model, like, batch)
    variables = killed(drawn(like), groups)
    sizes = {key: group.size // 2 for key, group in groups.items()}
    pruned = weights.prune_channels(variables, groups, weights.filter_norms(variables, groups), sizes)
    want = jax.eval_shape(narrow.init, jax.random.key(0), batch)
    assert jax.tree.map(jnp.shape, pruned) == jax.tree.map(jnp.shape, want)
    logits = lambda model, v: jax.jit(functools.partial(model.apply, key=None, train=False))(v, batch)[0]["logits"]  # noqa: E731
    np.testing.assert_allclose(logits(narrow, pruned), logits(model, variables), rtol=1e-4, atol=1e-4)


def test_norms_are_sums_over_all_filters_of_a_group():
    large, _, shape = NETWORKS["resnet"]
    model, batch = adapters.linen(large), {"image": jax.ShapeDtypeStruct(shape, jnp.float32)}
    variables = drawn(jax.eval_shape(model.init, jax.random.key(0), batch))
    groups = weights.channel_groups(model, variables, batch)
    stage = variables.params["ResNetStage_1"]["BasicBlock_0"]
    want = sum(np.abs(stage[name]["kernel"]).sum((0, 1, 2)) for name in ("Conv_1", "Conv_2"))
    norms = weights.filter_norms(variables, groups)
    np.testing.assert_allclose(norms["params/ResNetStage_1/BasicBlock_0/Conv_1/kernel"], want, rtol=1e-5)


def test_ties_keep_the_first_channels_and_their_order():
    group = weights.ChannelGroup(4, (("params/w", 0),), (("params/w", 0),))
    found = weights.prune_channels(Variables({"w": np.arange(4)}), {"g": group}, {"g": [1, 3, 1, 3]}, {"g": 3})
    np.testing.assert_array_equal(found.params["w"], [0, 1, 3])


def test_wrong_sizes_and_importance_are_errors():
    groups = {"g": weights.ChannelGroup(4, (("params/w", 0),), (("params/w", 0),))}
    prune = functools.partial(weights.prune_channels, Variables({"w": np.arange(4)}), groups)
    with pytest.raises(ValueError, match="sizes, g: expected 1 to 4, got 5"):
        prune({"g": np.ones(4)}, {"g": 5})
    with pytest.raises(ValueError, match="sizes"):
        prune({"g": np.ones(4)}, {"h": 2})
    with pytest.raises(ValueError, match="importance"):
        prune({}, {"g": 2})
    with pytest.raises(ValueError, match=r"importance, g: expected finite numbers \[4\], got \[3\]"):
        prune({"g": np.ones(3)}, {"g": 2})
    with pytest.raises(ValueError, match="got NaN or infinity among them"):
        prune({"g": [1, np.nan, 1, 1]}, {"g": 2})
    with pytest.raises(ValueError, match=r"params/w int64\[3\]: expected 4 channels along axis 0"):
        weights.prune_channels(Variables({"w": np.arange(3)}), groups, {"g": np.ones(4)}, {"g": 2})
