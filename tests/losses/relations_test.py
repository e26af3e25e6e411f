"""What is particular to the relations: shares of anchors, blocks, coinciding points, digits lost in Gram matrices."""

import numpy as np
import pytest

from tests import references
from tests.loss_runs import reference_slope, run
from tests.loss_table import BY_NAME, RELATIONAL

DISTANCE, ANGLE = BY_NAME["distance_relation"], BY_NAME["angle_relation"]
ROWS = pytest.mark.parametrize("row", RELATIONAL, ids=str)


@ROWS
@pytest.mark.parametrize("batch", [31, 64, 130])
def test_batches_that_fit_no_block(row, batch):
    """Whatever the blocks are: one, several, a rest; with a mask across them and NaN in what it excludes."""
    rng = np.random.default_rng(batch)
    student, teacher = row.inputs(((batch, 5), (batch, 3)), seed=batch)
    for where in (np.ones(batch, bool), rng.random(batch) < 0.7):
        spoiled = np.where(where[:, None], student, np.nan)
        cotangent, direction = rng.normal(size=batch), rng.normal(size=student.shape) * where[:, None]
        value, (gradient, _) = run(row, (spoiled, teacher), where=where, cotangent=cotangent)
        np.testing.assert_allclose(
            value, references.keep(where, row.reference, student, teacher), rtol=1e-8, atol=1e-14
        )
        expected = reference_slope(row, (student, teacher), (direction, None), cotangent, where)
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-7)


@ROWS
def test_higher_ranks_are_flattened(row):
    student, teacher = row.inputs(((6, 2, 3, 2), (6, 7)))
    value, (gradient, _) = run(row, (student, teacher))
    flat, (flat_gradient, _) = run(row, (student.reshape(6, -1), teacher))
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
def test_the_gradient_beside_coinciding_points(row):
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


@ROWS
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


def test_points_that_differ_have_a_positive_distance_in_float32():
    """However little: the mean is over the positive distances, and rounding must not take one away."""
    student, teacher = DISTANCE.inputs()
    student[:2] *= 1e-10
    student, teacher = (array.astype(np.float32).astype(float) for array in (student, teacher))
    value, _ = run(DISTANCE, (student, teacher), dtype=np.float32, optimized=True)
    np.testing.assert_allclose(value, DISTANCE.reference(student, teacher), rtol=1e-3)


@ROWS
def test_the_shares_add_up_to_the_published_mean(row):
    """Also under a mask: the mean is over the anchors that count."""
    student, teacher = row.inputs()
    where = np.arange(6) < 4
    value, _ = run(row, (student, teacher), where=where)
    whole, _ = run(row, (student[:4], teacher[:4]))
    np.testing.assert_allclose(value.sum() / 4, whole.mean(), rtol=1e-12)


def test_distances_are_over_the_mean_of_the_positive_ones():
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


def test_opposite_angles_cost_one_and_a_half():
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
