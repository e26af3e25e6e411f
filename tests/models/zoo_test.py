"""What holds for every model of the zoo: one table, the published one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters, models


def maps(stem, *stages, pooled):
    """The published taps, ``(size, channels)`` each, by name."""
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

# One of each kind of block and of each way to count them; the others of a family differ in how often it comes.
KINDS = ["resnet8", "resnet14", "resnet8x4", "resnet50", "wrn_16_2", "vgg8", "vgg13"]
KINDS += ["mobilenet_v2", "shufflenet_v1", "shufflenet_v2"]

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


def test_the_registry_has_the_models_of_the_table():
    assert models.names() == list(ZOO)


@pytest.mark.parametrize("name", ZOO)
def test_parameter_counts_are_the_published_ones(name):
    _, variables = tapped(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables.params)) == ZOO[name][0]


@pytest.mark.parametrize(("name", "train"), [*((name, False) for name in ZOO), *((name, True) for name in KINDS)])
def test_taps_have_the_published_shapes(name, train):
    model, variables = tapped(name)
    outputs, _ = jax.eval_shape(lambda v, b: model.apply(v, b, key=None, train=train), variables, BATCH)
    published = ZOO[name][1]
    expected = published | {f"{stage}_preact": published[stage] for stage in STAGES[name]} | {"logits": (100,)}
    assert {tap: output.shape for tap, output in outputs.items()} == {tap: (2, *s) for tap, s in expected.items()}


@pytest.mark.parametrize("name", ZOO)
def test_margin_norms_are_norms_of_the_channels_of_the_tap(name):
    _, variables = tapped(name)
    norms = models.margin_norms(name)
    # Half of what ShuffleNetV2 taps comes from units before the last.
    assert list(norms) == ([] if name == "shufflenet_v2" else [f"{stage}_preact" for stage in STAGES[name]])
    for tap, path in norms.items():
        channels = ZOO[name][1][tap.removesuffix("_preact")][-1:]
        shapes = jax.tree.map(jnp.shape, (at(variables.params, path), at(variables.state["batch_stats"], path)))
        assert shapes == ({"scale": channels, "bias": channels}, {"mean": channels, "var": channels}), path


@pytest.mark.parametrize("name", KINDS)
def test_computes_in_bfloat16_and_keeps_parameters_and_statistics_in_float32(name):
    model, variables = tapped(name, dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    outputs, state = jax.eval_shape(lambda v, b: model.apply(v, b, key=None, train=True), variables, BATCH)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32"}
    assert {leaf.dtype.name for leaf in outputs.values()} == {"bfloat16"}


@pytest.fixture(scope="module", params=KINDS)
def trained(request):
    """One pass in training mode over small images, with weights and statistics of no special values."""
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
        # Not under jit: the operations are few and shared by the models, whole programs would each be compiled.
        return model.apply(variables._replace(params=params), {"image": image}, key=None, train=True)

    return request.param, variables, run, *run(variables.params)


def test_preactivations_are_what_the_relu_of_the_stage_is_applied_to(trained):
    name, variables, _, outputs, _ = trained
    for stage in STAGES[name]:
        before, after = np.asarray(outputs[f"{stage}_preact"]), np.asarray(outputs[stage])
        assert before.min() < 0 < before.max()
        match name.split("_"):
            case "wrn", *_:  # the stage is raw, and the BatchNorm comes behind it
                assert after.min() < 0
                norm = at(variables.params, models.margin_norms(name)[f"{stage}_preact"])
                centered = after - after.mean(axis=(0, 1, 2))
                normal = centered / np.sqrt(after.var(axis=(0, 1, 2)) + 1e-5)
                np.testing.assert_allclose(before, normal * norm["scale"] + norm["bias"], rtol=1e-3, atol=1e-3)
            case "mobilenet", _:  # bottlenecks are linear
                np.testing.assert_array_equal(before, after)
            case "shufflenet", "v2":  # the two halves are shuffled after the ReLU
                halves = np.maximum(before, 0).reshape(*before.shape[:-1], 2, -1)
                np.testing.assert_array_equal(halves.swapaxes(-1, -2).reshape(before.shape), after)
            case _:
                np.testing.assert_array_equal(np.maximum(before, 0), after)


def test_the_norm_of_a_margin_makes_the_preactivation_or_its_branch(trained):
    """One more in the BatchNorm's bias is one more in the tap, and nothing else in a stage before."""
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


def test_training_moves_every_running_statistic(trained):
    _, variables, _, _, state = trained
    moved = jax.tree.map(
        lambda old, new: bool(np.isfinite(new).all()) and not np.array_equal(old, new), variables.state, state
    )
    assert jax.tree.leaves(moved) and all(jax.tree.leaves(moved))
