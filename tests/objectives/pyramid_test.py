"""Objectives on pyramids of maps: values of FGD, FGFI, PKD and CWD, levels that differ, and errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import combine, losses
from jaxkd.objectives import (
    aligned,
    dual_masked_generation,
    fine_grained_imitation,
    focal_and_global,
    hint,
    masked_generation,
    pyramid,
)
from tests.objectives import plain

PATHS = ("student/f", "teacher/f")
BOXES = np.array(
    [
        [[1, 2, 14, 9], [0, 0, 5, 16], [0, 0, 0, 0]],
        [[7, 7, 23.9, 16], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],  # an image without objects
    ],
    np.float32,
)


def given(student=(4, 6, 3), teacher=(4, 6, 4), boxes=BOXES):
    """Maps of images of 16 by 24 pixels, with boxes up to the image's edges."""
    batch = {
        "image": np.zeros((3, 16, 24, 3), np.float32),
        "boxes": boxes,
        "box_mask": boxes[..., 2] > boxes[..., 0],
    }
    return plain.context({"f": (3, *student)}, {"f": (3, *teacher)}, **batch)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


# --- References -----------------------------------------------------------------------------------------------------


def context_block(params, x):
    """A global context block of one map ``[height, width, channels]``, from GCNet's equation."""
    rows = x.reshape(-1, x.shape[-1])
    pooled = softmax((rows @ params["attention"]["kernel"])[:, 0]) @ rows
    hidden = plain.dense(params["first"], pooled)
    hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    return x + plain.dense(params["second"], plain.relu(hidden))


def focal(student, teacher, boxes, alpha, beta, gamma):
    """The focal term of one map, with boxes in cells."""
    height, width, channels = student.shape

    def attention(x):
        return (
            height * width * softmax(np.abs(x).mean(2).ravel() / 0.5).reshape(height, width),
            channels * softmax(np.abs(x).mean((0, 1)) / 0.5),
        )

    (space_s, channel_s), (space_t, channel_t) = attention(student), attention(teacher)
    inside = np.zeros((height, width))
    for x0, y0, x1, y1 in boxes:
        left, top, right, bottom = math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)
        for i in range(top, min(bottom + 1, height)):
            for j in range(left, min(right + 1, width)):
                inside[i, j] = max(inside[i, j], 1 / ((bottom + 1 - top) * (right + 1 - left)))
    outside = (inside == 0) / max((inside == 0).sum(), 1)
    squares = space_t[..., None] * channel_t * (teacher - student) ** 2
    apart = np.abs(space_t - space_s).sum() + np.abs(channel_t - channel_s).sum()
    return (squares * (alpha * inside + beta * outside)[..., None]).sum() + gamma * apart


def imitated(boxes, height, width, cell, scales, ratios, threshold):
    """Positions that have an anchor with an IoU of more than a share of the largest, per box."""
    mask = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes:
        overlap = np.zeros((height, width, len(scales) * len(ratios)))
        for i in range(height):
            for j in range(width):
                for k, (scale, ratio) in enumerate((s, r) for s in scales for r in ratios):
                    w, h = cell * scale / math.sqrt(ratio), cell * scale * math.sqrt(ratio)
                    x, y = (j + 0.5) * cell, (i + 0.5) * cell
                    common = max(min(x1, x + w / 2) - max(x0, x - w / 2), 0)
                    common *= max(min(y1, y + h / 2) - max(y0, y - h / 2), 0)
                    overlap[i, j, k] = common / (w * h + (x1 - x0) * (y1 - y0) - common)
        mask |= (overlap > threshold * overlap.max()).any(-1)
    return mask


# --- Values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_focal_and_global_equals_its_formula(channels):
    context = given(student=(4, 6, channels))
    weights = {"alpha": 0.3, "beta": 0.2, "gamma": 0.1}
    objective = focal_and_global(*PATHS, **weights, relation=0.05, weight=2.0)
    params = plain.made(objective, context).params
    assert ("align" in params) == (channels != 4)
    own = plain.f64(params)
    x, t = (np.float64(side["f"]) for side in (context.student, context.teacher))
    x = plain.dense(own["align"], x) if channels != 4 else x
    want = []
    for i in range(3):
        boxes = BOXES[i][context.batch["box_mask"][i]] / 4  # cells of 4 by 4 pixels
        apart = context_block(own["student_context"], x[i]) - context_block(own["teacher_context"], t[i])
        want.append(focal(x[i], t[i], boxes, **weights) + 0.05 * (apart**2).sum())
    found = jax.jit(lambda p, c: objective.apply(p, {}, c, None).value)(params, context)
    np.testing.assert_allclose(found, 2 * np.mean(want), rtol=1e-5)


def test_a_new_global_relation_is_the_difference_of_the_maps():
    context = given(student=(4, 6, 4))
    objective = focal_and_global(*PATHS, alpha=0.0, beta=0.0, gamma=0.0, relation=1.0)
    params = objective.init(jax.random.key(0), context).params
    want = ((context.student["f"] - context.teacher["f"]) ** 2).sum((1, 2, 3)).mean()
    found = jax.jit(lambda p, c: objective.apply(p, {}, c, None).value)(params, context)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_fine_grained_imitation_equals_its_formula():
    context, options = given(), {"scales": (1.5, 3.0), "ratios": (0.5, 1.0), "threshold": 0.6}
    objective = fine_grained_imitation(*PATHS, **options, weight=0.5)
    params = plain.made(objective, context).params
    assert params["align"]["kernel"].shape == (3, 3, 3, 4)
    x = plain.conv(plain.f64(params)["align"], np.float64(context.student["f"]))
    squares, want = (x - np.float64(context.teacher["f"])) ** 2, []
    for i in range(3):
        mask = imitated(BOXES[i][context.batch["box_mask"][i]], 4, 6, 4.0, **options)
        assert mask.any() == (i < 2)
        assert not mask.all()
        want.append(squares[i][mask].sum() / (2 * max(mask.sum(), 1)))
    np.testing.assert_allclose(objective.apply(params, {}, context, None).value, 0.5 * np.mean(want), rtol=1e-5)


def test_cells_need_not_be_square():
    """A box is the same part of the image whatever the map's size."""
    context = given(student=(4, 3, 4), teacher=(4, 3, 4))
    objective = fine_grained_imitation(*PATHS, scales=(1.0,), ratios=(1.0,), threshold=0.0, kernel_size=1, weight=1.0)
    params = objective.init(jax.random.key(0), context).params
    mask = np.asarray(
        jax.grad(lambda t: objective.apply(params, {}, context._replace(teacher={"f": t}), None).value)(
            jnp.asarray(context.teacher["f"])
        )
        != 0
    ).any(-1)
    # Anchors are the cells, 4 pixels high and 8 wide.
    np.testing.assert_array_equal(mask[0], [[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    ("loss", "options"),
    [("pearson_features", {}), pytest.param("channel_kl", {"temperature": 1.0}, marks=pytest.mark.slow)],
)
def test_aligned_is_the_loss_of_mapped_maps(loss, options):
    context = given(student=(8, 6, 3))
    objective = aligned(getattr(losses, loss), *PATHS, weight=6.0, **options)
    params = plain.made(objective, context).params
    mapped = plain.dense(plain.f64(params)["align"], plain.pool(context.student["f"], 4, 6)).astype(np.float32)
    want = 6 * getattr(losses, loss)(mapped, context.teacher["f"], **options).mean()
    np.testing.assert_allclose(objective.apply(params, {}, context, None).value, want, rtol=1e-4)


def test_aligned_has_parameters_only_where_they_are_needed():
    same = given(student=(4, 6, 4))
    assert aligned(losses.hint_mse, *PATHS).init(jax.random.key(0), same).params == {}
    for size, shape in ((1, (4, 4)), (3, (3, 3, 4, 4))):
        params = aligned(losses.hint_mse, *PATHS, kernel_size=size).init(jax.random.key(0), same).params
        assert params["align"]["kernel"].shape == shape


# --- Levels ---------------------------------------------------------------------------------------------------------

METHODS = {
    "mgd": functools.partial(masked_generation, mask_ratio=0.65, weight=2e-5),
    "dmkd": functools.partial(dual_masked_generation, weight=2e-5),
    "pkd": functools.partial(aligned, losses.pearson_features, weight=6.0),
    "cwd": functools.partial(aligned, losses.channel_kl, temperature=1.0, weight=10.0),
    "fgfi": fine_grained_imitation,
    "fgd": focal_and_global,
    "hint": functools.partial(aligned, losses.hint_mse, kernel_size=1, weight=0.5),
}
LEVELS = {"level0": (8, 12), "level1": (4, 6), "level2": (2, 3)}


def two_pyramids(batch=3, channels=3, seed=0, boxes=BOXES):
    """A student of two levels of strides 4 and 8, and a teacher of three of strides 2, 4 and 8."""
    rng = np.random.default_rng(seed)

    def draw(sizes, width):
        return {name: rng.normal(size=(batch, *size, width)).astype(np.float32) for name, size in sizes.items()}

    teacher = draw(LEVELS, 4)
    student = draw({"level0": LEVELS["level1"], "level1": LEVELS["level2"]}, channels)
    base = given(boxes=boxes)
    return base._replace(student=student, teacher=teacher)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_pyramid_is_the_sum_of_its_levels(name):
    context = two_pyramids()
    objective = pyramid(METHODS[name], {0: 1, 1: 2})
    params = plain.made(objective, context).params
    found = jax.jit(objective.apply)(params, {}, context, None)
    assert params.keys() == {"level0", "level1"}
    parts = [
        METHODS[name](f"student/level{own}", f"teacher/level{other}").apply(params[f"level{own}"], {}, context, None)
        for own, other in {0: 1, 1: 2}.items()
    ]
    np.testing.assert_allclose(found.value, sum(part.value for part in parts), rtol=1e-5)
    assert {"level0", "level1"} <= found.metrics.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_levels_of_other_sizes_are_compared_at_the_smaller(name):
    """The student's level 0, of 4 by 6 positions, with the teacher's of 8 by 12."""
    context = two_pyramids()
    objective = pyramid(METHODS[name], {0: 0})
    params = plain.made(objective, context).params
    small = context._replace(teacher={"level0": plain.pool(context.teacher["level0"], 4, 6)})
    found, want = (objective.apply(params, {}, c, None).value for c in (context, small))
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert np.isfinite(found)
    assert found > 0


def test_a_pyramid_gives_any_loss_maps_of_one_size():
    context = two_pyramids(channels=4)
    objective = pyramid(functools.partial(hint, weight=1.0), {1: 0})
    assert jax.tree.leaves(objective.init(jax.random.key(0), context)) == []  # no regressor of stride 4
    pooled = plain.pool(context.teacher["level0"], 2, 3)
    want = ((pooled - context.student["level1"]) ** 2).mean()
    np.testing.assert_allclose(objective.apply({}, {}, context, None).value, want, rtol=1e-5)


def test_a_number_of_levels_pairs_them_in_their_order():
    context = two_pyramids()
    context = context._replace(teacher={f"p{i}": context.teacher[f"level{i + 1}"] for i in range(2)})
    context = context._replace(student={f"p{i}": context.student[f"level{i}"] for i in range(2)})
    found, want = (
        pyramid(METHODS["pkd"], level_map, level_names="p{}").init(jax.random.key(0), context).params
        for level_map in (2, {0: 0, 1: 1})
    )
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, want)
    assert found.keys() == {"p0", "p1"}


# --- What papers' code trips over -----------------------------------------------------------------------------------

PER_IMAGE = [name for name in METHODS if name != "pkd"]  # PKD standardizes by the batch


def made(name, context):
    objective = combine(kd=pyramid(METHODS[name], {0: 1, 1: 2}))
    return objective, plain.made(objective, context).params


@pytest.mark.slow
@pytest.mark.parametrize("name", PER_IMAGE)
def test_a_value_does_not_depend_on_the_rest_of_the_batch(name):
    context = two_pyramids()
    objective, params = made(name, context)
    rows = [jax.tree.map(lambda x, i=i: x[i : i + 1] if np.ndim(x) else x, context) for i in range(3)]
    apart = [objective.apply(params, {}, row, None).value for row in rows]
    np.testing.assert_allclose(objective.apply(params, {}, context, None).value, np.mean(apart), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fgfi", "fgd"])
def test_padding_of_boxes_changes_nothing(name):
    context = two_pyramids()
    objective, params = made(name, context)
    padding = np.zeros((3, 5, 4), np.float32)
    more = {
        "boxes": np.concatenate([BOXES, padding], axis=1),
        "box_mask": np.pad(context.batch["box_mask"], ((0, 0), (0, 5))),
    }
    padded = context._replace(batch={**context.batch, **more})
    # Boxes that the mask excludes may hold anything.
    wild = {**more, "boxes": np.where(more["box_mask"][..., None], more["boxes"], np.nan)}
    wild = context._replace(batch={**context.batch, **wild})
    values = [float(objective.apply(params, {}, c, None).value) for c in (context, padded, wild)]
    assert values[0] == values[1] == values[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_finite(name):
    """Of empty images, of masked ones that hold NaN, of a batch that is all masked, and in bfloat16."""
    context = two_pyramids()
    objective, params = made(name, context)

    @jax.jit
    def gradient(params, student, context):
        return jax.grad(
            lambda p, s: objective.apply(p, {}, context._replace(student=s), jax.random.key(0)).value, argnums=(0, 1)
        )(params, student)

    empty = {**context.batch, "box_mask": np.zeros((3, 3), bool), "boxes": np.zeros((3, 3, 4), np.float32)}
    nan = jax.tree.map(
        lambda x: np.where(np.arange(3).reshape(3, 1, 1, 1) == 1, np.float32(np.nan), x), context.student
    )
    cases = {
        "empty": context._replace(batch=empty),
        "masked": context._replace(student=nan, batch={**context.batch, "mask": np.array([True, False, True])}),
        "all masked": context._replace(batch={**context.batch, "mask": np.zeros(3, bool)}),
        "zeros": context._replace(student=jax.tree.map(np.zeros_like, context.student)),
        "bfloat16": context._replace(
            student=jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), context.student),
            teacher=jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), context.teacher),
        ),
    }
    for case, other in cases.items():
        found = gradient(params, other.student, other)
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(found)), case
        if case == "all masked":
            assert not any(bool((x != 0).any()) for x in jax.tree.leaves(found))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fgfi", "fgd"])
def test_a_box_at_the_edge_and_beyond_is_imitated(name):
    edge = np.zeros((3, 3, 4), np.float32)
    edge[:, 0] = [20, 12, 24, 16]
    context = two_pyramids(boxes=edge)
    options = {"fgd": {"beta": 0.0, "gamma": 0.0, "relation": 0.0}, "fgfi": {}}[name]
    objective = METHODS[name]("student/level0", "teacher/level1", **options)
    params = objective.init(jax.random.key(0), context).params
    value = lambda t: objective.apply(params, {}, context._replace(teacher={"level1": t}), None).value  # noqa: E731
    moved = np.asarray(jax.grad(value)(jnp.asarray(context.teacher["level1"])) != 0).any(-1)
    assert moved[:, -1, -1].all()


# --- Errors ---------------------------------------------------------------------------------------------------------


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="pyramid, level_map: expected at least one level"):
        pyramid(METHODS["pkd"], {})
    with pytest.raises(ValueError, match="pyramid, level_map: expected a positive number"):
        pyramid(METHODS["pkd"], 0)
    with pytest.raises(ValueError, match="aligned, kernel_size: expected a positive number"):
        aligned(losses.hint_mse, *PATHS, kernel_size=0)
    with pytest.raises(ValueError, match=r"fine_grained_imitation, scales: expected at least one"):
        fine_grained_imitation(*PATHS, scales=())
    with pytest.raises(ValueError, match=r"fine_grained_imitation, ratios\[1\]: expected a positive number"):
        fine_grained_imitation(*PATHS, ratios=(1.0, 0.0))
    with pytest.raises(ValueError, match="focal_and_global, relation: expected a number of at least 0"):
        focal_and_global(*PATHS, relation=-1.0)


@pytest.mark.parametrize("make", [fine_grained_imitation, focal_and_global])
def test_batches_that_do_not_fit_raise(make):
    context = given()
    key = jax.random.key(0)
    for name in "boxes", "box_mask", "image":
        batch = {k: v for k, v in context.batch.items() if k != name}
        with pytest.raises(ValueError, match=f"batch/{name}"):
            make(*PATHS).init(key, context._replace(batch=batch))
    for name, shape, match in (("boxes", (3, 4), r"boxes \[batch, n, 4\]"), ("image", (3, 16), r"expected images")):
        batch = {**context.batch, name: np.zeros(shape, np.float32)}
        with pytest.raises(ValueError, match=match):
            make(*PATHS).init(key, context._replace(batch=batch))


def test_a_level_that_a_network_lacks_raises():
    with pytest.raises(ValueError, match="student/level2") as raised:
        pyramid(METHODS["pkd"], 3).init(jax.random.key(0), two_pyramids())
    assert "level2" in str(raised.value.__notes__)
    vectors = plain.context({"level0": (3, 4)}, {"level0": (3, 4)})
    with pytest.raises(ValueError, match="pyramid: expected a map"):
        pyramid(METHODS["pkd"], 1).init(jax.random.key(0), vectors)
