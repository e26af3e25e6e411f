"""Properties of every model of the zoo, from one table of published sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters, models


def maps(stem, *stages, pooled):
    """Published shapes of the taps, from ``(size, channels)``, by name."""
    named = {"stem": stem} | {f"stage{number}": stage for number, stage in enumerate(stages, 1)}
    return {tap: (size, size, channels) for tap, (size, channels) in named.items()} | {"pooled": (pooled,)}


NARROW = maps((32, 16), (32, 16), (16, 32), (8, 64), pooled=64)
TWICE = maps((32, 16), (32, 32), (16, 64), (8, 128), pooled=128)
FOUR_TIMES = maps((32, 32), (32, 64), (16, 128), (8, 256), pooled=256)
VGG = maps((32, 64), (16, 128), (8, 256), (4, 512), (4, 512), pooled=512)

ZOO = {
    "resnet8": (83_892, NARROW),
    "resnet14": (181_108, NARROW),
    "resnet20": (278_324, NARROW),
    "resnet32": (472_756, NARROW),
    "resnet44": (667_188, NARROW),
    "resnet56": (861_620, NARROW),
    "resnet110": (1_736_564, NARROW),
    "resnet8x4": (1_233_540, FOUR_TIMES),
    "resnet32x4": (7_433_860, FOUR_TIMES),
    "resnet50": (
        23_705_252,
        maps((32, 64), (32, 256), (16, 512), (8, 1024), (4, 2048), pooled=2048),
    ),
    "wrn_16_1": (180_916, NARROW),
    "wrn_16_2": (703_284, TWICE),
    "wrn_40_1": (569_780, NARROW),
    "wrn_40_2": (2_255_156, TWICE),
    "vgg8": (3_965_028, VGG),
    "vgg11": (9_277_284, VGG),
    "vgg13": (9_462_180, VGG),
    "vgg16": (14_774_436, VGG),
    "vgg19": (20_086_692, VGG),
    "mobilenet_v2": (
        812_836,
        maps((16, 16), (16, 12), (8, 16), (4, 48), (2, 160), pooled=1280),
    ),
    "shufflenet_v1": (949_258, maps((32, 24), (16, 240), (8, 480), (4, 960), pooled=960)),
    "shufflenet_v2": (1_355_528, maps((32, 24), (16, 116), (8, 232), (4, 464), pooled=1024)),
}
STAGES = {name: [tap for tap in taps if tap.startswith("stage")] for name, (_, taps) in ZOO.items()}

# One model per kind of block; the other models of a family differ in their numbers of blocks and channels.
QUICK = ["resnet8", "wrn_16_2", "vgg8", "mobilenet_v2", "shufflenet_v2"]
KINDS = [*QUICK, "resnet14", "resnet8x4", "resnet50", "vgg13", "shufflenet_v1"]


def rows(names):
    """Parameters of a test, slow for all models but the quick ones."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


BATCH = {"image": jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)}


@functools.cache
def tapped(name, **options):
    """The model with every one of its taps, and its abstract variables."""
    model = adapters.linen(models.create(name, num_classes=100, **options), taps=models.taps(name))
    return model, jax.eval_shape(model.init, jax.random.key(0), BATCH)


def at(tree, path):
    for part in path.split("/"):
        tree = tree[part]
    return tree


def test_registry_has_the_models_of_the_table():
    assert models.names() == list(ZOO)


@pytest.mark.parametrize("name", rows(ZOO))
def test_parameter_counts_are_the_published_ones(name):
    _, variables = tapped(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables.params)) == ZOO[name][0]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", rows(ZOO))
def test_taps_have_the_published_shapes(name, train):
    model, variables = tapped(name)
    outputs, _ = jax.eval_shape(lambda v, b: model.apply(v, b, key=None, train=train), variables, BATCH)
    published = ZOO[name][1]
    expected = published | {f"{stage}_preact": published[stage] for stage in STAGES[name]} | {"logits": (100,)}
    assert {tap: output.shape for tap, output in outputs.items()} == {tap: (2, *s) for tap, s in expected.items()}


@pytest.mark.parametrize("name", rows(ZOO))
def test_margin_norms_are_norms_of_the_channels_of_the_tap(name):
    _, variables = tapped(name)
    norms = models.margin_norms(name)
    # Half of the channels of ShuffleNetV2's taps come from earlier units.
    assert list(norms) == ([] if name == "shufflenet_v2" else [f"{stage}_preact" for stage in STAGES[name]])
    for tap, path in norms.items():
        channels = ZOO[name][1][tap.removesuffix("_preact")][-1:]
        shapes = jax.tree.map(jnp.shape, (at(variables.params, path), at(variables.state["batch_stats"], path)))
        assert shapes == ({"scale": channels, "bias": channels}, {"mean": channels, "var": channels}), path


@pytest.mark.parametrize("name", rows(KINDS))
def test_computes_in_bfloat16_and_keeps_parameters_and_statistics_in_float32(name):
    model, variables = tapped(name, dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    outputs, state = jax.eval_shape(lambda v, b: model.apply(v, b, key=None, train=True), variables, BATCH)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32"}
    assert {leaf.dtype.name for leaf in outputs.values()} == {"bfloat16"}


@pytest.fixture(scope="module", params=rows(KINDS))
def trained(request):
    """A forward pass in training mode over small images, with random weights and statistics."""
    rng = np.random.default_rng(0)
    model, shapes = tapped(request.param)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return rng.normal(scale=np.sqrt(2 / fan_in), size=leaf.shape).astype(np.float32)
        low = -0.5 if path[-1].key == "bias" else 0.5
        return rng.uniform(low, 1.5, size=leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    image = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)

    def run(params):
        # Without jit: the models share their few operations, whereas each whole program would be compiled.
        return model.apply(variables._replace(params=params), {"image": image}, key=None, train=True)

    return request.param, variables, run, *run(variables.params)


@pytest.mark.slow
def test_preactivation_is_the_input_of_the_last_relu(trained):
    name, variables, _, outputs, _ = trained
    for stage in STAGES[name]:
        before, after = np.asarray(outputs[f"{stage}_preact"]), np.asarray(outputs[stage])
        assert before.min() < 0 < before.max()
        match name.split("_"):
            case "wrn", *_:  # a BatchNorm follows the stage, which has no ReLU
                assert after.min() < 0
                norm = at(variables.params, models.margin_norms(name)[f"{stage}_preact"])
                centered = after - after.mean(axis=(0, 1, 2))
                normal = centered / np.sqrt(after.var(axis=(0, 1, 2)) + 1e-5)
                np.testing.assert_allclose(before, normal * norm["scale"] + norm["bias"], rtol=1e-3, atol=1e-3)
            case "mobilenet", _:  # bottlenecks are linear
                np.testing.assert_array_equal(before, after)
            case "shufflenet", "v2":  # the shuffle follows the ReLU
                halves = np.maximum(before, 0).reshape(*before.shape[:-1], 2, -1)
                np.testing.assert_array_equal(halves.swapaxes(-1, -2).reshape(before.shape), after)
            case _:
                np.testing.assert_array_equal(np.maximum(before, 0), after)


@pytest.mark.slow
def test_margin_norm_gives_the_preactivation_or_its_branch(trained):
    """Adding one to the BatchNorm's bias adds one to the tap, and leaves earlier taps unchanged."""
    name, variables, run, before, _ = trained
    for tap, path in models.margin_norms(name).items():
        params = jax.tree_util.tree_map_with_path(
            lambda place, leaf, path=path: leaf + ("/".join(part.key for part in place) == f"{path}/bias"),
            variables.params,
        )
        found, _ = run(params)
        np.testing.assert_allclose(found[tap] - before[tap], 1, rtol=1e-3, atol=1e-3)
        earlier = STAGES[name][: STAGES[name].index(tap.removesuffix("_preact"))]
        for tap_before in ("stem", *earlier, *(f"{stage}_preact" for stage in earlier)):
            np.testing.assert_array_equal(found[tap_before], before[tap_before])


@pytest.mark.slow
def test_training_updates_every_running_statistic(trained):
    _, variables, _, _, state = trained
    moved = jax.tree.map(
        lambda old, new: bool(np.isfinite(new).all()) and not np.array_equal(old, new), variables.state, state
    )
    assert jax.tree.leaves(moved) and all(jax.tree.leaves(moved))
