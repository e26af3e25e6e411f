"""Segmenters: sizes, the decoder by hand, BatchNorm, and the costs that docs/guides/dense.md states."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters, models
from jaxkd.models.dense._enet import Bottleneck
from jaxkd.models.dense._segmenter import SegmenterHead, upsampled

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "guides" / "dense.md"
ROW = re.compile(
    r"^\| `(?P<name>Segmenter|ENet)`, (?:stages|channels) of (?P<widths>[\d, ]+)(?:, pyramid of (?P<channels>\d+))? "
    r"\| (?P<parameters>[\d,]+) \| (?P<flops>[\d.]+) \|$",
    re.MULTILINE,
)
ROWS = {m[0]: m for m in ROW.finditer(PAGE.read_text(encoding="utf-8"))}
SMALL = {
    "Segmenter": models.Segmenter(num_classes=5, widths=(4, 6), channels=4, stride=2),
    "ENet": models.ENet(num_classes=5, widths=(4, 8, 12)),
}


def shapes(model, height, width, channels=3):
    image = jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return {name: x.shape for name, x in jax.eval_shape(model.apply, variables, image).items()}


@pytest.mark.parametrize("name", ["Segmenter", pytest.param("ENet", marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [(32, 48), (29, 51)])
def test_logits_have_the_size_of_the_image(name, size):
    found = shapes(SMALL[name], *size)
    assert found["logits"] == (2, *size, 5)
    levels = [shape for key, shape in found.items() if key.startswith("level")]
    for number, shape in enumerate(levels):
        assert shape[1:3] == tuple(-(-side // 2 ** (number + 1)) for side in size)


def test_upsampling_by_hand():
    x = jnp.array([[0.0, 4.0], [8.0, 12.0]]).reshape(1, 2, 2, 1)
    want = np.add.outer([0, 2, 6, 8], [0, 1, 3, 4])
    np.testing.assert_allclose(upsampled(x, 4, 4)[0, :, :, 0], want, atol=1e-6)


def test_scores_are_a_linear_map_without_layers():
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 4)).astype(np.float32)
    head = SegmenterHead(num_classes=3, features=4, layers=0, train=False)
    variables = head.init(jax.random.key(0), x)
    kernel = variables["params"]["Conv_0"]["kernel"][0, 0]
    np.testing.assert_allclose(head.apply(variables, x), x @ kernel, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["regular", "asymmetric", 2])
def test_a_bottleneck_of_zeros_is_its_shortcut(kind):
    """And its PReLU: a branch whose last normalization has scale 0 adds nothing."""
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 8)).astype(np.float32)
    block = Bottleneck(8, kind)
    variables = jax.tree.map(np.asarray, block.init(jax.random.key(0), x))
    variables["params"]["BatchNorm_2"]["scale"] = np.zeros(8, np.float32)
    np.testing.assert_allclose(block.apply(variables, x), np.where(x > 0, x, 0.01 * x), rtol=1e-5)


@pytest.mark.slow
def test_dilation_reaches_as_far_as_it_says():
    block = Bottleneck(4, 2)
    x = np.zeros((1, 9, 9, 4), np.float32)
    variables = block.init(jax.random.key(0), x)
    seen = jax.grad(lambda x: block.apply(variables, x)[0, 4, 4].sum())(x + 0.5)
    rows = np.flatnonzero(np.abs(seen[0]).sum((1, 2)))
    assert rows.tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (models.Segmenter(num_classes=1), "num_classes: expected at least 2, got 1"),
        (models.ENet(num_classes=1), "num_classes: expected at least 2, got 1"),
        (models.ENet(num_classes=3, widths=(16, 32)), r"widths: expected three numbers .*, got \(16, 32\)"),
        (models.ENet(num_classes=3, widths=(3, 32, 64)), r"widths: expected three numbers"),
    ],
)
def test_fields_that_cannot_be(model, message):
    with pytest.raises(ValueError, match=message):
        shapes(model, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_statistics_are_updated_in_training_and_used_in_evaluation(name):
    model = adapters.linen(SMALL[name])
    batch = {"image": np.random.default_rng(0).normal(size=(3, 17, 18, 3)).astype(np.float32)}
    variables = model.init(jax.random.key(0), batch)
    trained, state = model.apply(variables, batch, key=jax.random.key(1), train=True)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), variables.state, state)
    assert all(jax.tree.leaves(moved)) and trained["logits"].shape == (3, 17, 18, 5)
    alone = model.apply(variables, {"image": batch["image"][:1]}, key=None, train=False)[0]["logits"]
    whole = model.apply(variables, batch, key=None, train=False)[0]["logits"]
    np.testing.assert_allclose(alone, whole[:1], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_bfloat16(name):
    model = SMALL[name].clone(dtype=jnp.bfloat16)
    image = np.random.default_rng(0).normal(size=(2, 16, 18, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), image)
    found = model.apply(variables, image)
    assert found["logits"].dtype == jnp.bfloat16 and np.isfinite(np.float32(found["logits"])).all()
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_costs_on_the_page(row):
    found = ROWS[row]
    options = {"channels": int(found["channels"])} if found["channels"] else {}
    widths = tuple(map(int, found["widths"].split(",")))
    model = getattr(models, found["name"])(num_classes=11, widths=widths, **options)
    image = jnp.zeros((1, 120, 160, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert f"{sum(x.size for x in jax.tree.leaves(variables['params'])):,}" == found["parameters"]
    counted = jax.jit(model.apply).lower(variables, image).cost_analysis()["flops"]
    assert counted / 1e6 == pytest.approx(float(found["flops"]), rel=0.02)


def test_the_page_has_costs():
    assert len(ROWS) == 5
