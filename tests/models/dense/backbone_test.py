"""The pyramid of feature maps, and the sizes and costs that docs/guides/dense.md states."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxkd import adapters, models
from jaxkd.models.dense._backbone import Pyramid

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "guides" / "dense.md"
ROW = re.compile(
    r"^\| `(?P<name>PyramidBackbone|Detector)`, stages of (?P<widths>[\d, ]+), pyramid of (?P<channels>\d+) "
    r"\| (?P<parameters>[\d,]+) \| (?P<flops>[\d.]+) \|$",
    re.MULTILINE,
)
ROWS = {m[0]: m for m in ROW.finditer(PAGE.read_text(encoding="utf-8"))}


def shapes(model, height, width):
    image = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return {name: x.shape for name, x in jax.eval_shape(model.apply, variables, image).items()}


@pytest.mark.parametrize("stride", [1, 4])
def test_levels_of_any_size_of_image(stride):
    model = models.PyramidBackbone(widths=(4, 4, 6), channels=5, stride=stride)
    assert model.strides == (stride, 2 * stride, 4 * stride)
    found = shapes(model, 29, 50)
    assert list(found) == ["level0", "level1", "level2"]
    for s, shape in zip(model.strides, found.values(), strict=True):
        assert shape == (2, -(-29 // s), -(-50 // s), 5)


def test_top_down_path_by_hand():
    """Lateral and output convolutions that are the identity: each level is its map and the coarser sums, repeated."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(1, *size, 2)).astype(np.float32) for size in ((5, 3), (3, 2), (2, 1))]
    module = Pyramid(2)
    params = {}
    for number in range(3):
        identity = np.zeros((3, 3, 2, 2), np.float32)
        identity[1, 1] = np.eye(2)
        params[f"lateral{number}"] = {"kernel": np.eye(2, dtype=np.float32)[None, None], "bias": np.zeros(2)}
        params[f"output{number}"] = {"kernel": identity, "bias": np.full(2, number)}
    levels = module.apply({"params": params}, maps)
    total = maps[2]
    for number in (2, 1, 0):
        if number < 2:
            above, (height, width) = total, maps[number].shape[1:3]
            total = maps[number].copy()
            for row in range(height):
                for column in range(width):
                    total[0, row, column] += above[0, row // 2, column // 2]
        np.testing.assert_allclose(levels[number], total + number, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stride": 3}, r"stride: expected a power of two .*, got 3\."),
        ({"widths": ()}, r"widths, blocks: expected one stage or more"),
        ({"blocks": 0}, r"widths, blocks: .*, got \(16, 32, 64, 128\), 0\."),
    ],
)
def test_invalid_fields_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        shapes(models.PyramidBackbone(**fields), 8, 8)


def test_detector_has_a_row_for_each_anchor():
    model = models.Detector(num_classes=3, num_anchors=2, widths=(4, 4), channels=4, stride=2)
    found = shapes(model, 9, 6)
    anchors = 2 * (5 * 3 + 3 * 2)
    assert found["logits"] == (2, anchors, 4) and found["offsets"] == (2, anchors, 4)
    assert set(found) == {"logits", "offsets", "level0", "level1"}
    assert shapes(model.copy(form="sigmoid"), 9, 6)["logits"] == (2, anchors, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "focal"}, r"form: expected one of \('softmax', 'sigmoid'\), got 'focal'"),
        ({"num_anchors": 0}, r"num_anchors: expected at least 1, got 0"),
        ({"prior": 1.0}, r"prior: expected a probability"),
    ],
)
def test_invalid_fields_of_a_detector_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        shapes(models.Detector(**{"num_classes": 2, "num_anchors": 1, **fields}), 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_anchors_begin_with_the_prior_and_follow_the_positions(form):
    model = models.Detector(num_classes=3, num_anchors=2, form=form, widths=(4,), channels=4, stride=2, prior=0.05)
    adapted = adapters.linen(model)
    batch = {"image": jax.random.normal(jax.random.key(1), (2, 8, 64, 3))}
    variables = jax.jit(adapted.init)(jax.random.key(0), batch)
    run = jax.jit(lambda variables, batch: adapted.apply(variables, batch, key=None, train=False)[0])
    out = run(variables, batch)
    objects = nn.softmax(out["logits"])[..., 1:].sum(-1) if form == "softmax" else nn.sigmoid(out["logits"])
    np.testing.assert_allclose(objects, 0.05, rtol=0.5)
    # A change at the right edge of the image changes the anchors of the right columns alone: rows come before columns.
    image = batch["image"].at[:, :, -1].add(100.0)
    changed = np.abs(run(variables, {"image": image})["offsets"] - out["offsets"]).max(-1).reshape(2, 4, 32, 2)
    assert (changed[:, :, :16] == 0).all() and (changed[:, :, -1] > 0).all()


@pytest.mark.slow
def test_bfloat16_is_finite_and_parameters_have_gradients():
    model = models.Detector(num_classes=2, num_anchors=1, widths=(4, 6), channels=4, dtype=jnp.bfloat16)
    adapted = adapters.linen(model)
    batch = {"image": jax.random.normal(jax.random.key(1), (2, 13, 18, 3))}
    variables = jax.jit(adapted.init)(jax.random.key(0), batch)

    def loss(params):
        out, state = adapted.apply(variables._replace(params=params), batch, key=jax.random.key(2), train=True)
        return jnp.sum(jnp.sin(out["logits"].astype(float)) + jnp.cos(out["offsets"].astype(float)).mean()), state

    gradients, state = jax.jit(jax.grad(loss, has_aux=True))(variables.params)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradients)[0]:
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
    assert jax.tree.structure(state) == jax.tree.structure(variables.state)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_parameters_and_flops(row):
    row = ROWS[row]
    options = {"num_classes": 3, "num_anchors": 3} if row["name"] == "Detector" else {}
    widths = tuple(map(int, row["widths"].split(", ")))
    model = getattr(models, row["name"])(widths=widths, channels=int(row["channels"]), **options)
    image = jax.ShapeDtypeStruct((1, 120, 160, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == int(row["parameters"].replace(",", ""))
    flops = jax.jit(model.apply).lower(variables, image).cost_analysis()["flops"]
    assert flops / 1e6 == pytest.approx(float(row["flops"]), rel=0.02)


def test_the_table_is_read():
    assert len(ROWS) == 6
