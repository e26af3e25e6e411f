"""Properties of dense losses: overlaps by hand, padded boxes and joints, moments of regions, affinities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.losses import dense
from tests import references
from tests.loss_row import normal
from tests.loss_runs import run
from tests.loss_table import BY_NAME

CLASSES, BOUNDED = BY_NAME["class_weighted_cross_entropy"], BY_NAME["bounded_regression"]
IMITATION, PIXELS, PAIRS = BY_NAME["feature_imitation"], BY_NAME["pixel_kl"], BY_NAME["pair_affinity"]
CHANNELS = BY_NAME["channel_kl"]
MOMENTS, REGIONS = BY_NAME["region_moments"], BY_NAME["region_affinity"]
HEATMAPS, STRUCTURE = BY_NAME["heatmap_mse"], BY_NAME["joint_structure"]


# --- detection --------------------------------------------------------------------------------------------------------


def row_of_anchors(*anchors):
    """Anchors of a map of one row, one at each position."""
    return jnp.array(anchors, jnp.float32)[None, :, None]


def mask(anchors, *boxes, **options):
    return np.asarray(losses.imitation_mask(anchors, jnp.array(boxes, jnp.float32)[None], **options))[0, 0].tolist()


def test_the_mask_by_hand():
    """A box of 3 × 2 over anchors of 2 × 2: overlaps 4, 2 and 0 of unions 6, 8 and 10; the largest IoU is 2/3."""
    anchors = row_of_anchors([0, 0, 2, 2], [2, 0, 4, 2], [4, 0, 6, 2])
    box = [0, 0, 3, 2]
    assert mask(anchors, box, threshold=0.5) == [True, False, False]  # 1/4 < 1/3
    assert mask(anchors, box, threshold=0.37) == [True, True, False]  # 1/4 > 0.37 · 2/3
    assert mask(anchors, box, threshold=0.38) == [True, False, False]
    assert mask(anchors, box, threshold=0.0) == [True, True, False]
    assert mask(anchors, box, threshold=1.0) == [False, False, False]


def test_threshold_is_relative_to_each_boxs_largest_iou():
    """A small object, which no anchor covers well, still has its positions; an absolute threshold would leave none."""
    anchors = row_of_anchors([0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10])
    small, large = [1, 1, 2, 2], [20, 0, 30, 10]
    assert mask(anchors, small) == [True, False, False]  # IoU 1/100
    assert mask(anchors, small, large) == [True, False, True]


def test_any_anchor_selects_its_position():
    anchors = jnp.array([[[[0, 0, 1, 1], [0, 0, 4, 4]], [[4, 0, 5, 1], [4, 0, 8, 4]]]], jnp.float32)
    assert mask(anchors, [0, 0, 4, 4]) == [True, False]
    assert mask(anchors, [4, 0, 5, 1]) == [False, True]


@pytest.mark.parametrize(
    "box",
    [[100, 100, 110, 110], [2, 2, 2, 2], [3, 0, 1, 2], [0, 0, 0, 0], [2, 0, 2, 2]],
    ids=["no overlap", "a point", "right of left", "padding", "a line"],
)
def test_boxes_that_no_anchor_overlaps(box):
    anchors = row_of_anchors([0, 0, 2, 2], [2, 0, 4, 2], [0, 0, 0, 0])
    for threshold in (0.0, 0.5):
        assert mask(anchors, box, threshold=threshold) == [False] * 3
        assert mask(anchors, box, [0, 0, 2, 2], threshold=threshold) == [True, False, False]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([3, 0, 4, 2], [False, True]),  # IoU 2/4 with the second anchor, 0 with the first
        ([3, -1, 6, 2], [False, True]),  # 2/11
        ([-3, -2, 1, 1], [True, False]),  # 1/15
        ([-1, -1, 5, 3], [True, True]),  # 4/24 with both
    ],
    ids=["at the edge", "beyond the right edge", "beyond the corner", "beyond all edges"],
)
def test_boxes_at_the_edge_of_an_image_survive(box, expected):
    assert mask(row_of_anchors([0, 0, 2, 2], [2, 0, 4, 2]), box) == expected


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
def test_masked_boxes_may_have_any_value(garbage):
    anchors = row_of_anchors([0, 0, 2, 2], [2, 0, 4, 2])
    boxes = jnp.array([[[0, 0, 2, 2], [garbage] * 4], [[garbage] * 4, [garbage] * 4], [[2, 0, 4, 2]] * 2])
    box_where = jnp.array([[True, False], [False, False], [True, True]])
    result = jax.jit(losses.imitation_mask)(anchors, boxes, box_where=box_where)
    np.testing.assert_array_equal(result[:, 0], [[True, False], [False, False], [False, True]])


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_masks_of_drawn_boxes(threshold):
    """Against the reference; no boxes at all, and an empty batch."""
    rng = np.random.default_rng(0)
    centres = np.stack(np.meshgrid(np.arange(5.0), np.arange(4.0)), -1)[:, :, None] * 4
    sizes = np.array([[3.0, 3.0], [6.0, 2.0], [2.0, 8.0]])
    anchors = np.concatenate([centres - sizes / 2, centres + sizes / 2], -1)
    corners = rng.uniform(0, 16, size=(6, 5, 2, 2))
    boxes = np.concatenate([corners.min(2), corners.max(2)], -1)
    box_where = rng.random((6, 5)) < 0.6
    arrays = jnp.asarray(anchors, jnp.float32), jnp.asarray(boxes, jnp.float32)
    result = losses.imitation_mask(*arrays, threshold=threshold, box_where=jnp.asarray(box_where))
    assert (result.shape, result.dtype) == ((6, 4, 5), bool)
    expected = references.imitation_mask(anchors, boxes, threshold=threshold, box_where=box_where)
    np.testing.assert_array_equal(result, expected)
    assert 0 < expected.mean() < 1
    assert not losses.imitation_mask(arrays[0], arrays[1][:, :0]).any()
    assert losses.imitation_mask(arrays[0], arrays[1][:0]).shape == (0, 4, 5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_each_device_masks_its_own_images(check_vma):
    anchors = row_of_anchors([0, 0, 2, 2], [2, 0, 4, 2])
    boxes = jnp.array([[[0.0, 0.0, 2.0, 2.0]], [[2.0, 0.0, 4.0, 2.0]]])
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("devices")
    mapped = jax.shard_map(
        lambda boxes: losses.imitation_mask(anchors, boxes),
        mesh=mesh,
        in_specs=split,
        out_specs=split,
        check_vma=check_vma,
    )
    np.testing.assert_array_equal(jax.jit(mapped)(boxes)[:, 0], [[True, False], [False, True]])


def test_mask_has_no_gradient_and_vmaps():
    anchors, boxes = row_of_anchors([0, 0, 2, 2], [2, 0, 4, 2]), jnp.array([[[0.0, 0.0, 3.0, 2.0]]])
    stacked = jax.vmap(lambda boxes: losses.imitation_mask(anchors, boxes))(
        jnp.stack([boxes, boxes + jnp.array([[[2.0, 0.0, 2.0, 0.0]]])])
    )
    np.testing.assert_array_equal(stacked[:, 0, 0], [[True, False], [False, True]])

    def loss(boxes):
        features = jnp.ones((1, 1, 2, 3))
        return losses.feature_imitation(features, 0 * features, losses.imitation_mask(anchors, boxes)).sum()

    np.testing.assert_array_equal(jax.grad(loss)(boxes), 0)


@pytest.mark.parametrize(
    "name, anchors, boxes",
    [
        ("anchors", (3, 4), (2, 5, 4)),
        ("anchors", (3, 3, 2, 5), (2, 5, 4)),
        ("boxes", (3, 3, 2, 4), (5, 4)),
        ("boxes", (3, 3, 2, 4), (2, 5, 5)),
    ],
)
def test_boxes_of_another_shape(name, anchors, boxes):
    with pytest.raises(ValueError, match=rf"{name}: expected"):
        losses.imitation_mask(jnp.ones(anchors), jnp.ones(boxes))


def test_a_box_mask_of_another_shape_and_boxes_of_integers():
    anchors, boxes = jnp.ones((3, 3, 2, 4)), jnp.ones((2, 5, 4))
    with pytest.raises(ValueError, match=r"box_where.*bool\[2, 5\].*bool\[5\]"):
        losses.imitation_mask(anchors, boxes, box_where=jnp.ones(5, bool))
    with pytest.raises(ValueError, match=r"boxes.*float.*int32"):
        losses.imitation_mask(anchors, boxes.astype(jnp.int32))


def test_imitation_is_a_mean_over_the_positions_of_each_image():
    """Twice the positions with the same differences have the same value."""
    ones, zeros = np.ones((2, 2, 4, 3)), np.zeros((2, 2, 4, 3))
    some = np.zeros((2, 2, 4), bool)
    some[0, 0, :2] = some[1, :, 1:3] = True
    np.testing.assert_allclose(run(IMITATION, (ones, zeros, some))[0], [1.5, 1.5])


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_positions_outside_the_mask_may_have_any_value(garbage):
    student, teacher, some = IMITATION.inputs()
    expected, slopes = run(IMITATION, (student, teacher, some))
    spoiled = np.where(some[..., None], student, garbage)
    value, gradients = run(IMITATION, (spoiled, teacher, some))
    np.testing.assert_array_equal(value, expected)
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_array_equal(gradient, slope)
        np.testing.assert_array_equal(gradient[~some], 0)


def test_without_a_weight_for_the_background_it_is_a_cross_entropy():
    student, teacher = CLASSES.inputs()
    value, (gradient, _) = run(CLASSES, (student, teacher), hyper={"background_weight": 1.0})
    entropy = run(CLASSES, (teacher, teacher), hyper={"background_weight": 1.0})[0]
    np.testing.assert_allclose(value, entropy + references.soft_target_kl(student, teacher, temperature=1.0), rtol=1e-9)
    softmax = np.exp(references.log_softmax(student)) - np.exp(references.log_softmax(teacher))
    np.testing.assert_allclose(gradient, softmax, rtol=1e-9, atol=1e-14)


def test_background_of_weight_zero_may_be_excluded():
    """Of weight 0, even an infinite term is none."""
    student, teacher = np.array([[-np.inf, 0.0, 0.0]]), np.zeros((1, 3))
    value, gradients = run(CLASSES, (student, teacher), hyper={"background_weight": 0.0})
    np.testing.assert_allclose(value, 2 / 3 * np.log(2))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert run(CLASSES, (student, teacher))[0] == np.inf


@pytest.mark.parametrize("background", [-1, 5])
def test_background_that_is_not_a_class(background):
    with pytest.raises(ValueError, match=rf"background.*\[2, 5\].*{background}"):
        losses.class_weighted_cross_entropy(jnp.zeros((2, 5)), jnp.zeros((2, 5)), background=background)


@pytest.mark.parametrize("margin", [-1.0, 0.0, 0.5, 3.0, 100.0])
def test_the_margin_of_the_bound(margin):
    arrays = BOUNDED.inputs()
    expected = references.bounded_regression(*arrays, margin=margin)
    value, gradients = run(BOUNDED, arrays, hyper={"margin": margin})
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_array_equal(gradients[1], 0, err_msg="the teacher decides and is not compared with")
    np.testing.assert_allclose(gradients[0], -gradients[2])
    np.testing.assert_array_equal(gradients[0][value == 0], 0)


def test_equal_student_has_loss_zero_despite_rounding():
    """The loss jumps at equality: a sum that is rounded another way must not make it jump."""
    boxes, target = normal(np.random.default_rng(0), (1000, 4), (1000, 4))
    value, _ = run(BOUNDED, (1e3 * boxes, 1e3 * boxes, target), dtype=np.float32, optimized=True)
    np.testing.assert_array_equal(value, 0)


def test_one_image_of_all_rows_is_normalized_by_the_positions_of_the_batch():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 4, 5, 2))
    mask = rng.random((3, 4, 5)) < np.array([0.2, 0.5, 0.9])[:, None, None]
    expected = ((student - teacher)[mask] ** 2).sum() / (2 * mask.sum())
    found, _ = run(IMITATION, (student.reshape(1, 12, 5, 2), teacher.reshape(1, 12, 5, 2), mask.reshape(1, 12, 5)))
    np.testing.assert_allclose(found, [expected], rtol=1e-9)


# --- segmentation -----------------------------------------------------------------------------------------------------


def test_unlabeled_pixels_are_masked():
    student, teacher = PIXELS.inputs()
    labeled = np.random.default_rng(0).random((5, 2, 3)) < 0.7
    value, _ = run(PIXELS, (student, teacher), where=labeled)
    expected = references.soft_target_kl(student, teacher, temperature=1.0)
    np.testing.assert_allclose(np.mean(value, where=labeled), expected[labeled].mean(), rtol=1e-9)


@pytest.mark.parametrize("pool", [1, 2, 4])
def test_windows_are_averaged_to_one_position(pool):
    student, teacher = PAIRS.inputs(((3, 4, 8, 2), (3, 4, 8, 5)))
    pooled = [
        array.reshape(3, 4 // pool, pool, 8 // pool, pool, array.shape[-1]).mean((2, 4)) for array in (student, teacher)
    ]
    value = run(PAIRS, (student, teacher), hyper={"pool": pool})[0]
    np.testing.assert_allclose(value, references.pair_affinity(student, teacher, pool=pool), rtol=1e-9)
    np.testing.assert_allclose(value, run(PAIRS, tuple(pooled))[0], rtol=1e-9)


@pytest.mark.parametrize("pool", [0, -1, 3, 8])
def test_windows_that_do_not_fit(pool):
    with pytest.raises(ValueError, match=rf"pool.*\[4, 6\].*{pool}"):
        losses.pair_affinity(jnp.ones((1, 4, 6, 2)), jnp.ones((1, 8, 6, 3)), pool=pool)


def test_the_sizes_are_matched_before_the_windows():
    student, teacher = PAIRS.inputs(((3, 8, 4, 2), (3, 4, 6, 3)))
    expected = references.pair_affinity(student, teacher, pool=2)
    np.testing.assert_allclose(run(PAIRS, (student, teacher), hyper={"pool": 2})[0], expected, rtol=1e-9)


@pytest.mark.parametrize(("size", "nodes"), [((7, 7), 9), ((4, 6), 4), ((5, 1), 3)])
def test_maxima_of_windows_that_are_half_of_the_map(size, nodes):
    """As the authors pool, but for windows of one row: floor(N / 2) rows, and a smaller window at the end."""
    student, teacher = PAIRS.inputs(((2, *size, 3), (2, *size, 4)))
    assert len(references.segmentation.window_maxima(student[0], 0.5)) == nodes
    expected = references.pair_affinity(student, teacher, max_window=0.5)
    found = run(PAIRS, (student, teacher), hyper={"max_window": 0.5})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    # A masked example is NaN.
    where, masked = np.array([False, True]), np.where(np.arange(2)[:, None, None, None] == 0, np.nan, student)
    found = run(PAIRS, (masked, teacher), hyper={"max_window": 0.5}, where=where)[0]
    np.testing.assert_allclose(found, [0, expected[1]], rtol=1e-9)


def test_constant_norms_have_no_gradient():
    """d/dx of mean (u uᵀ − t tᵀ)², u = x / n with a constant n, is 4 (u uᵀ − t tᵀ) u / (n N²)."""
    student, teacher = PAIRS.inputs(((2, 2, 3, 4), (2, 2, 3, 5)))
    x, y = (array.reshape(2, 6, -1) for array in (student, teacher))
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    unit, other = x / norm, y / np.linalg.norm(y, axis=-1, keepdims=True)
    gap = unit @ unit.swapaxes(1, 2) - other @ other.swapaxes(1, 2)
    value, gradients = run(PAIRS, (student, teacher), hyper={"constant_norm": True})
    np.testing.assert_allclose(value, references.pair_affinity(student, teacher), rtol=1e-9)
    np.testing.assert_allclose(gradients[0].reshape(x.shape), 4 * gap @ unit / norm / 36, rtol=1e-7)


@pytest.mark.parametrize("part", [0, 1.5, -0.5, np.nan, "half"])
def test_windows_of_the_maximum_that_do_not_fit(part):
    maps = jnp.ones((1, 4, 6, 2))
    with pytest.raises(ValueError, match="max_window: expected a fraction above 0 and at most 1, got"):
        losses.pair_affinity(maps, maps, max_window=part)
    with pytest.raises(ValueError, match=r"max_window: expected None or pool=1, got 0.5 and pool=2"):
        losses.pair_affinity(maps, maps, max_window=0.5, pool=2)
    with pytest.raises(ValueError, match="constant_norm: expected True or False, got 1"):
        losses.pair_affinity(maps, maps, constant_norm=1)


def test_affinities_have_no_array_of_all_pairs_features():
    shapes = [jax.ShapeDtypeStruct((2, 8, 8, channels), jnp.float32) for channels in (32, 64)]
    gradient = jax.grad(lambda *arrays: losses.pair_affinity(*arrays).sum(), argnums=(0, 1))
    equations = jax.make_jaxpr(gradient)(*shapes).jaxpr.eqns
    assert max(variable.aval.size for equation in equations for variable in equation.outvars) == 2 * 64 * 64


# --- masks of positions -----------------------------------------------------------------------------------------------


def void(shape, share=0.6, seed=5):
    """A mask of a map's positions, of which the last example has none."""
    some = np.random.default_rng(seed).random(shape) < share
    some[-1] = False
    return some


def test_channels_are_compared_over_the_positions_of_a_mask():
    """As if the other positions were not there: a map of one row of the included ones."""
    student, teacher = CHANNELS.inputs(((3, 3, 4, 2), (3, 3, 4, 2)))
    where = void((3, 3, 4))
    expected = [
        references.channel_kl(*(x[i][where[i]][None, None] for x in (student, teacher)))[0] if where[i].any() else 0
        for i in range(3)
    ]
    spoiled = [np.where(where[..., None], x, np.nan) for x in (student, teacher)]
    value, gradients = run(CHANNELS, spoiled, where=where)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    assert all(np.isfinite(g).all() and not g[~where].any() for g in gradients)


@pytest.mark.parametrize("hyper", [{}, {"pool": 2}, {"max_window": 0.5}])
def test_pairs_are_of_the_positions_of_a_mask(hyper):
    student, teacher = PAIRS.inputs(((3, 4, 6, 2), (3, 4, 6, 3)))
    where = void((3, 4, 6), 0.3)
    high, wide = {"pool": (2, 2), "max_window": (2, 3)}.get(next(iter(hyper), ""), (1, 1))
    reduce = np.max if "max_window" in hyper else np.mean
    expected = np.zeros(3)
    for i in range(3):
        nodes = []
        for x in (student, teacher):
            windows = [
                (x[i, r : r + high, c : c + wide], where[i, r : r + high, c : c + wide])
                for r in range(0, 4, high)
                for c in range(0, 6, wide)
            ]
            nodes.append(np.array([reduce(own[inside], axis=0) for own, inside in windows if inside.any()]))
        if len(nodes[0]):
            s, t = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in nodes)
            expected[i] = np.mean((s @ s.T - t @ t.T) ** 2)
    spoiled = [np.where(where[..., None], x, np.nan) for x in (student, teacher)]
    value, gradients = run(PAIRS, spoiled, where=where, hyper=hyper)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    assert all(np.isfinite(g).all() and not g[~where].any() for g in gradients)


@pytest.mark.parametrize("row", [BY_NAME["channel_kl"], BY_NAME["pair_affinity"]], ids=str)
def test_a_pooled_position_is_masked_with_any_of_its_window(row):
    """And a mask of all positions is none, for maps of two sizes."""
    student, teacher = row.inputs(((3, 4, 6, 2), (3, 2, 3, 2)))
    where = void((3, 4, 6), 0.9)
    pooled = student.reshape(3, 2, 2, 3, 2, 2).mean((2, 4))
    expected = run(row, (pooled, teacher), where=where.reshape(3, 2, 2, 3, 2).all((2, 4)))[0]
    np.testing.assert_allclose(run(row, (student, teacher), where=where)[0], expected, rtol=1e-9)
    whole = run(row, (student, teacher), where=np.ones((3, 4, 6), bool))[0]
    np.testing.assert_allclose(whole, run(row, (student, teacher))[0], rtol=1e-9)


# --- regions ----------------------------------------------------------------------------------------------------------


def test_moments_by_hand():
    """Region a: 1, 2, 6, of mean 3, deviations -2, -1, 3, variance 14/3, skewness 18/3 / (14/3)^1.5; b: 7; c: none."""
    features = np.array([1.0, 2.0, 6.0, 7.0]).reshape(1, 2, 2, 1)
    regions = np.zeros((1, 2, 2, 3), bool)
    regions[0, :, :, 0] = [[True, True], [True, False]]
    regions[0, 1, 1, 1] = True
    expected = [[3.0, 14 / 3, 6 / (14 / 3) ** 1.5], [7.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    value, (gradient,) = run(MOMENTS, (features, regions))
    np.testing.assert_allclose(value[0, :, :, 0], expected, rtol=1e-12)
    assert np.isfinite(gradient).all()


def test_regions_may_be_weights():
    """Positions of weight 2 are there twice; a weight of a half, of all, changes nothing."""
    features, regions = MOMENTS.inputs()
    twice = np.where(np.arange(4)[None, None, :, None] == 1, 2.0, 1.0) * regions
    expected = references.region_moments(features, twice)
    repeated = (np.concatenate([array, array[:, :, 1:2]], axis=2) for array in (features, regions))
    np.testing.assert_allclose(run(MOMENTS, tuple(repeated))[0], expected, rtol=1e-9)
    with jax.enable_x64(True):
        for factor in (1.0, 0.5):
            value = losses.region_moments(jnp.asarray(features), jnp.asarray(factor * twice))
            np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-13)
        gradient = jax.grad(lambda w: losses.region_moments(jnp.asarray(features), w).sum())(jnp.asarray(twice))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("value", [0.1, 1e4, -3.3])
def test_equal_features_have_no_variance_and_no_skewness(value):
    """In float32, their mean may be off by a rounding: as a skewness, that would be 1."""
    regions = np.ones((1, 3, 7, 1), bool)
    result, (gradient,) = run(MOMENTS, (np.full((1, 3, 7, 2), value), regions), dtype=np.float32, optimized=True)
    np.testing.assert_allclose(result[0, 0, 0], value, rtol=1e-6)
    np.testing.assert_array_equal(result[0, 0, 1:], 0)
    assert np.isfinite(gradient).all()


def test_moments_far_from_zero_keep_their_digits():
    """E[x²] - μ² would leave none in float32."""
    features, regions = MOMENTS.inputs()
    value, _ = run(MOMENTS, (features.astype(np.float32) + np.float32(4096), regions), dtype=np.float32)
    exact = references.region_moments((features.astype(np.float32) + np.float32(4096)).astype(float), regions)
    np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-5)


def test_empty_regions_are_excluded():
    """Labels of many classes, of which an image has few."""
    student, teacher, regions = REGIONS.inputs()
    expected, slopes = run(REGIONS, (student, teacher, regions))
    more = np.concatenate([0 * regions[..., :1], regions, 0 * regions], axis=-1).astype(bool)
    value, gradients = run(REGIONS, (student, teacher, more))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-14)


def test_skewness_of_symmetric_regions_has_no_direction():
    """Values around a middle have no skewness; in float32 what is left of it points anywhere."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(4, 3, 2, 5))
    around = np.concatenate([1 + half, 1 - half], axis=2)
    regions = np.ones((4, 3, 4, 2), bool)
    regions[:, 0, :, 1] = False
    value, gradients = run(REGIONS, (around, around[::-1], regions), dtype=np.float32, optimized=True)
    exact = references.region_affinity(around, around[::-1], regions)
    np.testing.assert_allclose(value, exact, rtol=1e-3, atol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_memory_of_moments_does_not_grow_with_the_regions():
    """One region at a time, in the backward pass too."""

    def largest(regions):
        shapes = jax.ShapeDtypeStruct((2, 16, 16, 8), jnp.float32), jax.ShapeDtypeStruct((2, 16, 16, regions), bool)
        gradient = jax.jit(jax.grad(lambda x, regions: losses.region_moments(x, regions).sum()))
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert largest(64) < 2 * largest(4) + 64 * 2 * 16 * 16 * 4


def test_regions_of_floats_have_no_affinity():
    maps = jnp.ones((1, 2, 2, 3))
    with pytest.raises(ValueError, match=r"regions.*bool.*float32"):
        losses.region_affinity(maps, maps, jnp.ones((1, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"regions.*int32"):
        losses.region_moments(maps, jnp.ones((1, 2, 2, 2), jnp.int32))


# --- pose -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [HEATMAPS, STRUCTURE], ids=str)
@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf])
def test_masked_joints_have_no_effect(row, garbage):
    student, teacher = row.inputs(((4, 3, 4, 5),) * 2)
    joint_where = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    expected = np.zeros(4)
    for index, counts in enumerate(joint_where):
        if counts.any():
            expected[index] = row.reference(*(array[index : index + 1][..., counts] for array in (student, teacher)))[0]
    spoiled = [np.where(joint_where[:, None, None], array, garbage) for array in (student, teacher)]
    with jax.enable_x64(True):
        for where in (None, np.array([True, True, False, True])):

            def loss(student, teacher, where=where):
                return row.loss(student, teacher, joint_where=joint_where, where=where)

            value, pullback = jax.vjp(loss, *map(jnp.asarray, spoiled))
            counted = np.ones(4, bool) if where is None else where
            np.testing.assert_allclose(value, expected * counted, rtol=1e-9, atol=1e-14)
            for gradient in pullback(jnp.ones(4)):
                assert np.isfinite(gradient).all()
                gone = ~(joint_where & counted[:, None])
                np.testing.assert_array_equal(np.moveaxis(np.asarray(gradient), 3, 1)[gone], 0)


@pytest.mark.parametrize("row", [HEATMAPS, STRUCTURE], ids=str)
def test_a_joint_mask_of_another_shape(row):
    maps = jnp.ones((2, 3, 3, 4))
    for joint_where in (jnp.ones(4, bool), jnp.ones((2, 4))):
        with pytest.raises(ValueError, match=r"joint_where.*bool\[2, 4\].*got"):
            row.loss(maps, maps, joint_where=joint_where)


def test_structure_is_invariant_to_translation():
    """A pose moved by a pixel has the same structure, and other heatmaps."""
    student, _ = STRUCTURE.inputs()
    moved = np.roll(student, 1, axis=2)
    np.testing.assert_allclose(run(STRUCTURE, (student, moved))[0], 0, atol=1e-14)
    assert run(HEATMAPS, (student, moved))[0].min() > 0.1


# --- together ---------------------------------------------------------------------------------------------------------


def test_package_exports_every_function():
    assert set(dense.__all__) <= set(losses.__all__)
    for name in dense.__all__:
        assert getattr(losses, name) is getattr(dense, name)
        assert name in dense.__doc__
