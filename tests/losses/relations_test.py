"""Properties of the relations: shares of anchors, blocks, coinciding points, digits lost in Gram matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests import references
from tests.loss_runs import reference_slope, run
from tests.loss_table import BY_NAME
from tests.loss_table import ROWS as EVERY_ROW

DISTANCE, ANGLE = BY_NAME["distance_relation"], BY_NAME["angle_relation"]
RELATIONS = pytest.mark.parametrize("row", [row for row in EVERY_ROW if row.module.startswith("relations.")], ids=str)
#: of distances, whose square root has a kink where two points coincide
ROWS = pytest.mark.parametrize("row", [DISTANCE, ANGLE], ids=str)
OF_COSINES = pytest.mark.parametrize(
    "row",
    [BY_NAME[name] for name in ("similarity_preserving", "correlation_congruence", "probabilistic_transfer")],
    ids=str,
)


@RELATIONS
@pytest.mark.parametrize("batch", [31, 64, 131])
def test_batches_that_no_block_size_divides(row, batch):
    """Whatever the blocks are: one, several, a rest; with a mask across them and NaN in what it excludes."""
    rng = np.random.default_rng(batch)
    student, teacher = row.inputs(row.relation_shapes(batch, 5), seed=batch)
    for where in (np.ones(batch, bool), rng.random(batch) < 0.7):
        spoiled = np.where(where[:, None], student, np.nan)
        cotangent, direction = rng.normal(size=batch), rng.normal(size=student.shape) * where[:, None]
        value, (gradient, _) = run(row, (spoiled, teacher), where=where, cotangent=cotangent)
        np.testing.assert_allclose(value, row.keep(where, (student, teacher)), rtol=1e-8, atol=1e-14)
        expected = reference_slope(row, (student, teacher), (direction, None), cotangent, where)
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["distance_relation", "angle_relation"])
def test_several_devices_and_several_blocks(name):
    """Of the examples of all devices, with the vertices of one."""
    arrays = BY_NAME[name].inputs(((2, 70, 5), (2, 70, 3)))
    cotangent = np.random.default_rng(0).normal(size=(2, 70))

    def local(student, teacher, cotangent):
        loss = functools.partial(getattr(losses, name), axis_name="devices")
        value, pullback = jax.vjp(loss, student, teacher)
        return value, *pullback(cotangent)

    with jax.enable_x64(True):
        results = jax.jit(jax.vmap(local, axis_name="devices"))(*arrays, cotangent)
    whole = [array.reshape(140, -1) for array in arrays]
    value, gradients = run(BY_NAME[name], whole, cotangent=cotangent.reshape(-1))
    for result, expected in zip(results, (value, *gradients), strict=True):
        np.testing.assert_allclose(result.reshape(expected.shape), expected, rtol=1e-9, atol=1e-14)


@RELATIONS
def test_higher_ranks_are_flattened(row):
    student, teacher = row.inputs(((6, 2, 3, 2),) * 2)
    value, (gradient, _) = run(row, (student, teacher))
    flat, (flat_gradient, _) = run(row, (student.reshape(6, -1), teacher.reshape(6, -1)))
    np.testing.assert_allclose(value, flat, rtol=1e-12)
    np.testing.assert_allclose(gradient.reshape(6, -1), flat_gradient, rtol=1e-10, atol=1e-15)


DUPLICATES = pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-9), (np.float32, 1e-3)], ids=["64", "32"])


@ROWS
@DUPLICATES
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_coinciding_points(row, dtype, rtol, offset):
    """Their distance is 0, not the rounding of a Gram matrix: it is none of the positive ones, and has no direction."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(12, 24)) + offset, rng.normal(size=(12, 40)) + offset
    student[[3, 7, 8]] = student[0]
    teacher[[3, 4]] = teacher[0]
    student, teacher = student.astype(dtype).astype(float), teacher.astype(dtype).astype(float)
    value, gradients = run(row, (student, teacher), dtype=dtype, optimized=dtype == np.float32)
    np.testing.assert_allclose(value, row.reference(student, teacher), rtol=rtol, atol=1e-7)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@ROWS
def test_gradient_of_points_that_do_not_coincide(row):
    """Points 0 and 3 coincide in both networks: moved together they stay so, and the loss is smooth there."""
    student, teacher = row.inputs(((8, 5), (8, 6)))
    student[3], teacher[3] = student[0], teacher[0]
    cotangent = np.random.default_rng(1).normal(size=8)
    _, (gradient, _) = run(row, (student, teacher), cotangent=cotangent)
    for seed in range(3):
        direction = np.random.default_rng(seed).normal(size=student.shape)
        direction[3] = direction[0]
        expected = reference_slope(row, (student, teacher), (direction, None), cotangent)
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("row", [DISTANCE, ANGLE, BY_NAME["similarity_preserving"]], ids=str)
@pytest.mark.parametrize("offset, rtol", [(1.0, 1e-3), (30.0, 5e-3)])
def test_embeddings_far_from_the_origin_in_float32(row, offset, rtol):
    """Behind a ReLU all embeddings have a common mean; |a|² + |b|² - 2ab loses the digits that the distance needs."""
    student, teacher = row.inputs(((16, 24), (16, 40)))
    student, teacher = ((array + offset).astype(np.float32).astype(float) for array in (student, teacher))
    value, gradients = run(row, (student, teacher), dtype=np.float32, optimized=True)
    _, exact = run(row, (student, teacher))
    expected = row.reference(student, teacher)
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=rtol * expected.mean())
    for gradient, precise in zip(gradients, exact, strict=True):
        np.testing.assert_allclose(gradient, precise, atol=10 * rtol * np.abs(precise).max())


@ROWS
def test_nearly_coinciding_points_in_float32(row):
    """Two views of one image: a thousand times nearer to one another than to the rest."""
    student, teacher = row.inputs(((16, 24), (16, 40)))
    student[1] = student[0] + 1e-3 * np.random.default_rng(1).normal(size=24)
    student, teacher = (array.astype(np.float32).astype(float) for array in (student, teacher))
    value, gradients = run(row, (student, teacher), dtype=np.float32, optimized=True)
    np.testing.assert_allclose(value, row.reference(student, teacher), rtol=1e-3)
    for gradient, precise in zip(gradients, run(row, (student, teacher))[1], strict=True):
        np.testing.assert_allclose(gradient, precise, atol=5e-3 * np.abs(precise).max())


def test_different_points_have_a_positive_distance_in_float32():
    """However little: the mean is over the positive distances, and rounding must not take one away."""
    student, teacher = DISTANCE.inputs()
    student[:2] *= 1e-10
    student, teacher = (array.astype(np.float32).astype(float) for array in (student, teacher))
    value, _ = run(DISTANCE, (student, teacher), dtype=np.float32, optimized=True)
    np.testing.assert_allclose(value, DISTANCE.reference(student, teacher), rtol=1e-3)


@OF_COSINES
@DUPLICATES
def test_coinciding_directions(row, dtype, rtol):
    """Equal, parallel, opposite: a cosine of ±1, and beyond it by a rounding."""
    student, teacher = row.inputs(((12, 300), (12, 200)))
    student[[3, 7, 8]] = student[0], 3 * student[0], -student[0]
    teacher[[3, 4, 8]] = teacher[0], -teacher[0], -2 * teacher[0]
    student, teacher = student.astype(dtype).astype(float), teacher.astype(dtype).astype(float)
    value, gradients = run(row, (student, teacher), dtype=dtype, optimized=dtype == np.float32)
    # At a cosine of -1, PKT takes the logarithm of a rounding error beside its epsilon of 1e-7, and how products are
    # fused, and so rounded, depends on the processor.
    coarse = 2e-2 if row.name == "probabilistic_transfer" else 1e-2
    tolerance = max(rtol, coarse) if dtype == np.float32 else rtol
    np.testing.assert_allclose(value, row.reference(student, teacher), rtol=tolerance, atol=1e-7)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@RELATIONS
def test_mean_of_the_shares_is_the_published_value(row):
    """Also under a mask: the mean is over the anchors that count."""
    student, teacher = row.inputs()
    where = np.arange(len(student)) < 4
    value, _ = run(row, (student, teacher), where=where)
    whole, _ = run(row, (student[:4], teacher[:4]))
    np.testing.assert_allclose(value.sum() / 4, whole.mean(), rtol=1e-12)


def test_distances_are_divided_by_the_mean_positive_distance():
    """Not over the mean of all: four points, two of which coincide, have ten positive distances of sixteen."""
    points = np.array([[0.0], [0.0], [1.0], [3.0]])
    normalized = references.normalized_distances(points)
    np.testing.assert_allclose(normalized[normalized > 0].mean(), 1)
    assert (normalized > 0).sum() == 10
    value, _ = run(DISTANCE, (points, np.eye(4)))
    np.testing.assert_allclose(value, references.huber(normalized - (1 - np.eye(4))).mean(1), rtol=1e-10)


def test_the_huber_loss_is_linear_beyond_one():
    """A far outlier: its distance is several times the mean."""
    student = np.concatenate([np.random.default_rng(0).normal(size=(11, 2)), [[200.0, 0.0]]])
    teacher = np.random.default_rng(1).normal(size=(12, 2))
    differences = references.normalized_distances(student) - references.normalized_distances(teacher)
    assert np.abs(differences).max() > 2, "the linear part is in use"
    np.testing.assert_allclose(run(DISTANCE, (student, teacher))[0], references.huber(differences).mean(1), rtol=1e-9)


def test_opposite_angles_have_loss_one_and_a_half():
    """Cosines of -1 and 1 differ by 2, and huber(2) = 1.5: the largest share that a pair can have."""
    student, teacher = np.array([[0.0], [1.0], [-1.0]]), np.array([[0.0], [1.0], [2.0]])
    value, _ = run(ANGLE, (student, teacher))
    np.testing.assert_allclose(value, [2 * 1.5 / 9, 2 * 1.5 / 9, 0.0], rtol=1e-9, atol=1e-12)


def test_points_on_a_line_have_finite_angles():
    """Cosines of exactly ±1, where an arccosine, or the square root of 1 - cos², has no slope."""
    points = np.arange(6.0)[:, None]
    for dtype in (np.float64, np.float32):
        value, gradients = run(ANGLE, (points, points**2), dtype=dtype)
        np.testing.assert_allclose(value, references.angle_relation(points, points**2), atol=1e-6)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_similarity_preserving_is_the_frobenius_norm_of_the_paper():
    row = BY_NAME["similarity_preserving"]
    student, teacher = row.inputs()

    def gram(x):
        product = x @ x.T
        return product / np.linalg.norm(product, axis=1, keepdims=True)

    difference = np.linalg.norm(gram(student) - gram(teacher)) ** 2
    np.testing.assert_allclose(run(row, (student, teacher))[0].mean(), difference / len(student) ** 2, rtol=1e-12)


def test_the_series_of_the_correlation_converges_to_the_gaussian():
    """exp(-γ ‖a - b‖²) = exp(-2γ) exp(2γ ⟨a, b⟩) of unit vectors; two terms are the paper's, and not far."""
    row = BY_NAME["correlation_congruence"]
    arrays = row.inputs()

    def gaussian(x, gamma):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return np.exp(-gamma * ((x[:, None] - x[None]) ** 2).sum(-1))

    for gamma, order in ((0.4, 12), (1.5, 25)):
        exact = (np.subtract(*(gaussian(array, gamma) for array in arrays)) ** 2).mean(1)
        value, _ = run(row, arrays, hyper={"gamma": gamma, "order": order})
        np.testing.assert_allclose(value, exact, rtol=1e-9)
    exact = (np.subtract(*(gaussian(array, 0.4) for array in arrays)) ** 2).mean(1)
    np.testing.assert_allclose(run(row, arrays)[0], exact, rtol=0.2)
    np.testing.assert_array_equal(run(row, arrays, hyper={"order": 0})[0], 0)


def test_negative_order_of_the_series():
    with pytest.raises(ValueError, match=r"order.*0 or more.*-1"):
        losses.correlation_congruence(jnp.ones((3, 2)), jnp.ones((3, 2)), order=-1)


def test_consecutive_examples_skip_masked_ones():
    """What a mask takes out of the row leaves neighbors, however far apart they stood."""
    row = BY_NAME["consecutive_correlation"]
    student, teacher = row.inputs()
    where = np.isin(np.arange(6), (1, 4))
    error = np.abs(student - teacher)
    value, _ = run(row, (student, teacher), where=where)
    np.testing.assert_allclose(value, [0, 2 * (error[1] * error[4]).sum(), 0, 0, 0, 0], rtol=1e-12)


def test_consecutive_correlation_depends_on_the_order():
    row = BY_NAME["consecutive_correlation"]
    student, teacher = row.inputs()
    value, other = (
        run(row, (student[order], teacher[order]))[0].mean() for order in (np.arange(6), [0, 2, 4, 1, 3, 5])
    )
    assert abs(value / other - 1) > 1e-3


def test_probabilities_by_hand():
    """Cosines 1 and 0 are the probabilities 2/3 and 1/3, which the teacher has alike; ε moves them by its size."""
    value, _ = run(BY_NAME["probabilistic_transfer"], (np.eye(2), [[1.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_allclose(value, np.log(9 / 8) / 4, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0, -1e-7, float("nan")])
def test_an_epsilon_that_is_not_positive(epsilon):
    with pytest.raises(ValueError, match=rf"epsilon.*positive.*{epsilon}"):
        losses.probabilistic_transfer(jnp.ones((3, 2)), jnp.ones((3, 2)), epsilon=epsilon)
